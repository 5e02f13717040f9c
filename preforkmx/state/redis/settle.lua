-- Book what a session spent, and reserve what it wants.
-- KEYS: the host's arrival times
-- ARGV: time, ConnectionLimits.budget_numbers as doubles,
--       as doubles: what is reserved (PREPAID), what was spent, what is wanted (PREPAID;
--       less than 0: what is reserved is given back)
-- Returns the budget that refuses or 0, the µs to wait, and the grant of each budget.

local numbers, amounts = doubles(ARGV[2]), doubles(ARGV[3])

read_arrivals(KEYS[1])
local code, wait = 0, 0
local reserved, more = {}, {}
for index, name in ipairs(BUDGETS) do
    local interval, tolerance = numbers[2 * index - 1], numbers[2 * index]
    if interval > 0 then
        local prepaid, short = index <= PREPAID, 0
        local left_over = book(index, interval, tolerance, amounts[index], amounts[PREPAID + index])
        if prepaid then
            local want = amounts[PREPAID + #BUDGETS + index]
            if want < 0 then
                give_back(name, left_over, interval, tolerance)
                left_over = 0
            else
                short = want - left_over
            end
            reserved[index] = left_over
        end
        if short > 0 or not prepaid then
            local left = units_left(name, interval, tolerance)
            if left == 0 then
                local how_long = wait_for_one(name, interval, tolerance)
                if how_long > wait then
                    code, wait = REFUSED_BY_BUDGET + index - 1, how_long
                end
            elseif short > 0 then
                more[index] = math.min(short, math.max(1, math.floor(left / 4)))
            end
        end
    end
end

local reply = {code, wait}
for index, name in ipairs(BUDGETS) do
    local interval, tolerance = numbers[2 * index - 1], numbers[2 * index]
    local grant = UNLIMITED
    if interval > 0 then
        if index > PREPAID then
            grant = units_left(name, interval, tolerance)
        else
            grant = reserved[index]
            if code == 0 and more[index] then
                charge(name, more[index] * interval, tolerance)
                grant = grant + more[index]
            end
        end
    end
    reply[2 + index] = grant
end
write_arrivals(KEYS[1])
return reply
