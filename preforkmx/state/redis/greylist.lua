-- Look at one triplet, and remember it (preforkmx/state/greylisting.py has the rules).
-- KEYS: the network's passes   "EXPIRY PASSES LAST"
--       the triplet            "EXPIRY FIRST" while it is deferred, "EXPIRY" when it is known
--       the network's limit on new triplets, a theoretical arrival time
-- ARGV: time, delay, window, life, auto_allow_after, spacing,
--       interval and tolerance of the limit on new triplets
-- Returns the state's number, µs left of the delay, µs waited.

local NEW, EARLY, PASSED, KNOWN, AUTO_ALLOWED = 0, 1, 2, 3, 4
local HOUR = 3600000000

local delay, window, life = number(2), number(3), number(4)
local after, spacing = number(5), number(6)

-- An entry's last sight is noted coarsely: a busy one would be written each time.
local function stale(expiry)
    return now + life - expiry > math.min(math.floor(life / 64), HOUR)
end

local function set(key, expiry, ...)
    local words = {whole(expiry)}
    for _, value in ipairs({...}) do
        words[#words + 1] = whole(value)
    end
    redis.call('SET', key, table.concat(words, ' '), 'PX', px(expiry))
end

-- The numbers of a value that has not expired; nil for none.
local function alive(value)
    if not value then
        return nil
    end
    local expiry, first, second = string.match(value, '^(%d+) ?(%d*) ?(%d*)$')
    expiry = tonumber(expiry)
    if expiry <= now then
        return nil
    end
    return expiry, tonumber(first), tonumber(second)
end

local values = redis.call('MGET', KEYS[1], KEYS[2])
local allowed, passes, last = alive(values[1])
if allowed and after > 0 and after <= passes then
    if stale(allowed) then
        set(KEYS[1], now + life, passes, last)
    end
    return {AUTO_ALLOWED, 0, 0}
end

local expiry, first = alive(values[2])
if expiry and not first then
    if stale(expiry) then
        set(KEYS[2], now + life)
    end
    return {KNOWN, 0, 0}
end
if not expiry then
    local interval, tolerance = number(7), number(8)
    local arrival = next_arrival(tonumber(redis.call('GET', KEYS[3])) or 0, interval, tolerance)
    if wait_for(arrival, tolerance) == 0 then
        redis.call('SET', KEYS[3], whole(arrival), 'PX', px(arrival))
        set(KEYS[2], now + window, now)
    end
    return {NEW, delay, 0}
end
if first > now then
    -- The clock was set back: begin again, sooner than it would come round.
    set(KEYS[2], now + window, now)
    return {EARLY, delay, 0}
end
local waited = now - first
if waited < delay then
    return {EARLY, delay - waited, 0}
end

set(KEYS[2], now + life)
if not allowed then
    passes, last = 1, now
elseif last > now then
    last = now -- the clock was set back
elseif now - last >= spacing then
    passes, last = passes + 1, now
end
set(KEYS[1], now + life, passes, last)
return {PASSED, 0, waited}
