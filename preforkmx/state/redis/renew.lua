-- Renew leases of one host. What Redis has forgotten meanwhile is counted again.
-- KEYS: the host's leases
-- ARGV: time, a lease's life in µs, the leases

local expiry = now + number(2)
for index = 3, #ARGV do
    redis.call('ZADD', KEYS[1], whole(expiry), ARGV[index])
end
redis.call('PEXPIRE', KEYS[1], px(expiry))
return #ARGV - 2
