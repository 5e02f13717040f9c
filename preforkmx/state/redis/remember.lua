-- Know marks from now on.
-- KEYS: the marks, of one tag
-- ARGV: time, life in µs

local expiry = now + number(2)
for _, key in ipairs(KEYS) do
    redis.call('SET', key, whole(expiry), 'PX', px(expiry))
end
return #KEYS
