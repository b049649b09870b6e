-- A job and its second try elsewhere (a job that was just accepted) know each other from now on.
-- ARGV: seconds a record stays, the first job, its attempt that takes too long, the second one
-- Returns 1, or 0 when the first job has gone on meanwhile: then the second one ends.
-- needs: ending
local first, second = ARGV[2], ARGV[4]
local record = redis.call('HMGET', job_key(first), 'state', 'attempt', 'first_token_at', 'cancel', 'hedge')
if (record[1] == 'running' or record[1] == 'dispatched') and record[2] == ARGV[3]
  and not (record[3] or record[4] or record[5]) and redis.call('EXISTS', job_key(second)) == 1 then
  redis.call('HSET', job_key(first), 'hedge', second)
  redis.call('HSET', job_key(second), 'hedge_of', first)
  redis.call('HINCRBY', P .. 'hedges', 'begun', 1)
  return 1
end
call_off(second, ARGV[1])
return 0
