-- Take some of one rate limit, or nothing.
-- KEYS: the limit's theoretical arrival time
-- ARGV: time, cost in µs, tolerance in µs
-- Returns how many µs to wait, 0 when it was taken.

local cost, tolerance = number(2), number(3)
local arrival = next_arrival(tonumber(redis.call('GET', KEYS[1])) or 0, cost, tolerance)
local wait = wait_for(arrival, tolerance)
if wait == 0 then
    redis.call('SET', KEYS[1], whole(arrival), 'PX', px(arrival))
end
return wait
