-- The audit trail's head moves on, never back: of two writers the later row counts.
-- ARGV: number of the row, the head. Returns 1 if it is kept now.
local key = P .. 'audit:head'
local seq = tonumber(redis.call('HGET', key, 'seq') or '0')
if tonumber(ARGV[1]) <= seq then return 0 end
redis.call('HSET', key, 'seq', ARGV[1], 'head', ARGV[2])
return 1
