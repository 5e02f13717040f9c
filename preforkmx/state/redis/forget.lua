-- Forget every key. A key whose expiry is over is deleted, which needs no right of its own.
-- KEYS: any, of one tag
-- ARGV: time
-- Returns how many there were.

local known = 0
for _, key in ipairs(KEYS) do
    known = known + redis.call('PEXPIRE', key, -1)
end
return known
