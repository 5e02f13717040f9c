-- Write down that a network has passed so often.
-- KEYS: the network's passes
-- ARGV: time, passes, life in µs

local expiry = now + number(3)
redis.call('SET', KEYS[1], table.concat({whole(expiry), ARGV[2], whole(now)}, ' '), 'PX', px(expiry))
return 1
