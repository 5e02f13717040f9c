-- Give a lease back, book what its session spent, and give back what is still reserved.
-- KEYS: the host's arrival times
--       the host's leases
-- ARGV: time, ConnectionLimits.budget_numbers as doubles (or none),
--       as doubles: what is reserved (PREPAID), what was spent
--       the lease ("" where it is no place among the open connections),
--       "1" where nobody knows whether it was ever given: then nothing else is given back
--       unless it was

if ARGV[4] ~= '' and redis.call('ZREM', KEYS[2], ARGV[4]) == 0 and ARGV[5] == '1' then
    return 0
end
if ARGV[2] == '' then
    return 1
end
local numbers, amounts = doubles(ARGV[2]), doubles(ARGV[3])
read_arrivals(KEYS[1])
for index, name in ipairs(BUDGETS) do
    local interval, tolerance = numbers[2 * index - 1], numbers[2 * index]
    if interval > 0 then
        local reserved = book(index, interval, tolerance, amounts[index], amounts[PREPAID + index])
        if index <= PREPAID then
            give_back(name, reserved, interval, tolerance)
        end
    end
end
write_arrivals(KEYS[1])
return 1
