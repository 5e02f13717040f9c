-- What is used up of a host's limits, and how many connections it has open. Changes nothing.
-- KEYS: the host's arrival times
--       the network's arrival time
--       the host's leases
-- ARGV: time
-- Returns the time, the arrival times of the host's connections, the network's, and the budgets,
-- and the number of leases.

local stored = {}
local words = redis.call('HGETALL', KEYS[1])
for index = 1, #words, 2 do
    stored[words[index]] = tonumber(words[index + 1])
end
local reply = {now, stored.c or 0, tonumber(redis.call('GET', KEYS[2])) or 0}
for _, name in ipairs({'m', 'r', 'a', 'o', 'e'}) do
    reply[#reply + 1] = stored[name] or 0
end
reply[#reply + 1] = #redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. whole(now), '+inf')
return reply
