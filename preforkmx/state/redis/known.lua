-- Which marks are known. Changes nothing.
-- KEYS: the marks, of one tag
-- ARGV: time
-- Returns the indices of those that are known.

local known = {}
for index, key in ipairs(KEYS) do
    if (tonumber(redis.call('GET', key)) or 0) > now then
        known[#known + 1] = index
    end
end
return known
