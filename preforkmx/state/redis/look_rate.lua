-- What is used up of one rate. Changes nothing.
-- KEYS: the rate's theoretical arrival time
-- ARGV: time
-- Returns the time and the arrival time.

return {now, tonumber(redis.call('GET', KEYS[1])) or 0}
