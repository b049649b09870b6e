-- What decisions were made under stays readable by its hash; the oldest are forgotten.
-- ARGV: hash, text, how many to keep
local texts, used = P .. 'policies', P .. 'policies:used'
redis.call('HSETNX', texts, ARGV[1], ARGV[2])
redis.call('ZADD', used, int(now_ms()), ARGV[1])
local over = redis.call('ZCARD', used) - tonumber(ARGV[3])
if over > 0 then
  local old = redis.call('ZPOPMIN', used, over)
  for i = 1, #old, 2 do redis.call('HDEL', texts, old[i]) end
end
return 1
