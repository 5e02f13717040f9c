-- What every script begins with: the time, and GCRA in whole microseconds (preforkmx/state/gcra.py).
-- A number of Lua is a double, exact up to 2^53. Times and spans are bounded so that no sum which
-- is stored comes near it before the year 2055: a span has at most 3.2e15 (LONGEST_SPAN).

-- ARGV[1] is the time where a test has a clock of its own; its keys outlive their expiry by a
-- minute of real time, and the values that are stored decide what has expired.
local now, slack = tonumber(ARGV[1]), 60000
if not now then
    local time = redis.call('TIME')
    now, slack = time[1] * 1000000 + time[2], 1
end

local function number(index)
    return tonumber(ARGV[index])
end

-- Never 1.8e+15, which is how Lua would write it.
local function whole(value)
    return string.format('%.0f', value)
end

-- How long a key lives, in ms, whose content means something until `expiry`.
local function px(expiry)
    return whole(math.ceil((expiry - now) / 1000) + slack)
end

local function next_arrival(stored, cost, tolerance)
    if stored <= now then
        return now + cost
    end
    return math.min(stored, now + tolerance) + cost
end

local function wait_for(arrival, tolerance)
    return math.max(0, arrival - tolerance - now)
end

