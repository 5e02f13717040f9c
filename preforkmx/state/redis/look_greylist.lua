-- What greylisting knows. Changes nothing.
-- KEYS: the network's passes, and a triplet where one is asked for
-- ARGV: time
-- Returns the time, expiry, passes and last pass of the network, and expiry and first try of the
-- triplet; 0 is none.

local reply = {now}
for index, key in ipairs(KEYS) do
    local first, second, third =
        string.match(redis.call('GET', key) or '', '^(%d+) ?(%d*) ?(%d*)$')
    if not first or tonumber(first) <= now then
        first, second, third = 0, 0, 0
    end
    reply[#reply + 1] = tonumber(first)
    reply[#reply + 1] = tonumber(second) or 0
    if index == 1 then
        reply[#reply + 1] = tonumber(third) or 0
    end
end
for index = #reply + 1, 6 do
    reply[index] = 0
end
return reply
