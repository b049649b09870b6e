-- Parked jobs leave for good: the ledger has their end, and nothing of them stays here.
-- ARGV: ids. Returns per job 1, or 0 when it isn't parked.
local answers = {}
for _, id in ipairs(ARGV) do
  local key = job_key(id)
  local record = redis.call('HMGET', key, 'state', 'tenant')
  if record[1] == 'dead' then
    redis.call('ZREM', P .. 'dead', id)
    redis.call('ZREM', P .. 'jobs:' .. record[2], id)
    redis.call('DEL', key, P .. 'events:' .. id, P .. 'payload:' .. id)
    answers[#answers + 1] = 1
  else
    answers[#answers + 1] = 0
  end
end
return answers
