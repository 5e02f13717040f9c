-- The theoretical arrival times of one host, in a hash: that of its connections, "c", and those of
-- its budgets (preforkmx/state/budgets.py has the rules).

local BUDGETS = {'m', 'r', 'a', 'o', 'e'} -- in the order of decisions.BUDGETS
local PREPAID = 3
local REFUSED_BY_BUDGET = 4
local UNLIMITED = -1

-- Doubles are exact up to 2^53, and read in one step where 15 arguments take 15.
local FORMATS = {
    [40] = '>ddddd',
    [64] = '>dddddddd',
    [80] = '>dddddddddd',
    [88] = '>ddddddddddd',
    [120] = '>ddddddddddddddd'
}
local function doubles(packed)
    local numbers = {struct.unpack(FORMATS[#packed], packed)}
    numbers[#numbers] = nil -- behind them stands where it stopped
    return numbers
end

local arrivals, words, latest, lives_until = {}, {}, now, 0

local function read_arrivals(key)
    local stored = redis.call('HGETALL', key)
    for index = 1, #stored, 2 do
        local arrival = tonumber(stored[index + 1])
        arrivals[stored[index]] = arrival
        if arrival > lives_until then
            lives_until = arrival
        end
    end
end

local function put(name, arrival)
    arrivals[name] = arrival
    words[#words + 1] = name
    words[#words + 1] = whole(arrival)
    if arrival > latest then
        latest = arrival
    end
end

-- Write what changed. The key lives as long as the latest of all, or longer where that became
-- earlier; workers with other limits may have written it.
local function write_arrivals(key)
    if #words > 0 then
        redis.call('HSET', key, unpack(words))
        if latest > lives_until then
            redis.call('PEXPIRE', key, px(latest))
        end
    end
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

-- Give back what is reserved of a budget. One that is at rest is whole, and more it cannot be.
local function give_back(name, reserved, interval, tolerance)
    local arrival = arrivals[name] or 0
    if reserved > 0 and arrival > now then
        put(name, math.min(arrival, now + 2 * tolerance) - reserved * interval)
    end
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

