-- A message that no worker can read: counted, and kept for people to look at, the newest few.
-- ARGV: how many are kept, reason, queue, the message
redis.call('LPUSH', P .. 'bad-messages', int(now_ms()) .. '\n' .. ARGV[2] .. '\n' .. ARGV[3] .. '\n' .. ARGV[4])
redis.call('LTRIM', P .. 'bad-messages', 0, tonumber(ARGV[1]) - 1)
return redis.call('INCR', P .. 'bad-messages:count')
