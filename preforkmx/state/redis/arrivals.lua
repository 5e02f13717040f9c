-- The theoretical arrival times of one host, in a hash: that of its connections, "c", and those of
-- its budgets (preforkmx/state/budgets.py has the rules).

local BUDGETS = {'m', 'r', 'a', 'o', 'e'} -- in the order of decisions.BUDGETS
local PREPAID = 3
local REFUSED_BY_BUDGET = 4
local UNLIMITED = -1

-- Doubles are exact up to 2^53, and read in one step where 15 arguments take 15.
local function doubles(packed)
    return {struct.unpack('>' .. string.rep('d', #packed / 8), packed)}
end

local arrivals, changed = {}, {}

local function read_arrivals(key)
    local words = redis.call('HGETALL', key)
    for index = 1, #words, 2 do
        arrivals[words[index]] = tonumber(words[index + 1])
    end
end

local function put(name, arrival)
    arrivals[name], changed[name] = arrival, arrival
end

-- Write what changed. The key lives as long as the latest of all: workers with other limits
-- may have written the others.
local function write_arrivals(key)
    local words, latest = {}, now
    for name, arrival in pairs(changed) do
        words[#words + 1] = name
        words[#words + 1] = whole(arrival)
    end
    if #words == 0 then
        return
    end
    for _, arrival in pairs(arrivals) do
        latest = math.max(latest, arrival)
    end
    redis.call('HSET', key, unpack(words))
    redis.call('PEXPIRE', key, px(latest))
end

-- How far a budget has run ahead of the time: of that no sum comes near 2^53, while one with the
-- time might.
local function ahead(name)
    return math.max((arrivals[name] or 0) - now, 0)
end

-- Charge a budget, whatever is left of it.
local function charge(name, cost, tolerance)
    put(name, now + math.min(ahead(name) + cost, 2 * tolerance))
end

local function units_left(name, interval, tolerance)
    return math.max(0, math.floor((tolerance - ahead(name)) / interval))
end

local function wait_for_one(name, interval, tolerance)
    return math.max(0, math.min(ahead(name), 2 * tolerance) - tolerance + interval)
end

-- Charge what was spent of a budget, and return what is still reserved: that is charged already.
local function book(index, interval, tolerance, reserved, spent)
    if index <= PREPAID then
        local covered = math.min(spent, reserved)
        reserved, spent = reserved - covered, spent - covered
    end
    if spent > 0 then
        charge(BUDGETS[index], spent * interval, tolerance)
    end
    return reserved
end

