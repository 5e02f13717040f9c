-- Check every limit of a new connection; then charge them all and hold its lease, or do nothing.
-- KEYS: the host's arrival times
--       the network's arrival time
--       the host's leases, a sorted set scored by their expiry
-- ARGV: time, ConnectionLimits.connection_numbers and .budget_numbers as doubles, the lease,
--       its life in µs
-- Returns the outcome and the µs to wait; where it is admitted, the grant of each budget, or none
-- when no budget has a limit.

local REFUSED_BY_HOST, REFUSED_BY_NETWORK, REFUSED_BY_LEASES = 1, 2, 3
local FIRST = {1, 1, 0} -- what is reserved of the prepaid budgets

local numbers = doubles(ARGV[2])
local host_interval, host_tolerance = numbers[1], numbers[2]
local network_interval, network_tolerance = numbers[3], numbers[4]
local concurrent = numbers[5]
local budgets = #numbers > 5 and BUDGETS or {}
local life = number(4)

read_arrivals(KEYS[1])
local outcome, wait = 0, 0
local function refuse(by, how_long)
    if how_long > wait then
        outcome, wait = by, how_long
    end
end

local host_arrival, network_arrival
if host_interval > 0 then
    host_arrival = next_arrival(arrivals.c or 0, host_interval, host_tolerance)
    refuse(REFUSED_BY_HOST, wait_for(host_arrival, host_tolerance))
end
if network_interval > 0 then
    local stored = tonumber(redis.call('GET', KEYS[2])) or 0
    network_arrival = next_arrival(stored, network_interval, network_tolerance)
    refuse(REFUSED_BY_NETWORK, wait_for(network_arrival, network_tolerance))
end
for index, name in ipairs(budgets) do
    local interval, tolerance = numbers[4 + 2 * index], numbers[5 + 2 * index]
    if interval > 0 then
        refuse(REFUSED_BY_BUDGET + index - 1, wait_for_one(name, interval, tolerance))
    end
end
if outcome > 0 then
    return {outcome, wait}
end

if concurrent > 0 then
    local held = redis.call('ZCARD', KEYS[3])
    if held >= concurrent then
        held = held - redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', whole(now))
    end
    if held >= concurrent then
        -- Where the clock was set back, leases of the dead would live as much longer.
        local beyond = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. whole(now + life), '+inf')
        for _, lease in ipairs(beyond) do
            redis.call('ZADD', KEYS[3], whole(now + life), lease)
        end
        return {REFUSED_BY_LEASES, 0}
    end
    redis.call('ZADD', KEYS[3], whole(now + life), ARGV[3])
    redis.call('PEXPIRE', KEYS[3], px(now + life))
end
if host_interval > 0 then
    put('c', host_arrival)
end
if network_interval > 0 then
    redis.call('SET', KEYS[2], whole(network_arrival), 'PX', px(network_arrival))
end
local reply = {0, 0}
for index, name in ipairs(budgets) do
    local interval, tolerance = numbers[4 + 2 * index], numbers[5 + 2 * index]
    local grant = UNLIMITED
    if interval > 0 then
        if index > PREPAID then
            grant = units_left(name, interval, tolerance)
        else
            grant = FIRST[index]
            if grant > 0 then
                charge(name, grant * interval, tolerance)
            end
        end
    end
    reply[2 + index] = grant
end
write_arrivals(KEYS[1])
return reply
