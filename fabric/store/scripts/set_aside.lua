-- A message that no worker can read: counted, and kept for people to look at, the newest few.
-- ARGV: how many are kept, reason, the message ('' when the broker keeps it)
if ARGV[3] ~= '' then
  redis.call('LPUSH', P .. 'bad-messages', ARGV[2] .. '\n' .. ARGV[3])
  redis.call('LTRIM', P .. 'bad-messages', 0, tonumber(ARGV[1]) - 1)
end
return redis.call('INCR', P .. 'bad-messages:count')
