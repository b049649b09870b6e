-- A worker takes jobs of a message for its own. A stale message gets nothing; a claim that is sent
-- again by the same worker (its answer was lost) gets the same answer.
-- ARGV: worker, then per job: id, attempt
-- Returns per job {spec, payload, failed tries so far} or {} when the claim is refused.
local at = int(now_ms())
local worker = ARGV[1]
-- A claim is a sign of life: whoever holds jobs is in the list that the rescue looks at.
redis.call('ZADD', P .. 'workers', 'GT', at, worker)
local answers = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local key = job_key(id)
  local record = redis.call('HMGET', key, 'state', 'attempt', 'spec', 'quiet', 'watchers', 'worker', 'failures')
  if record[1] == 'dispatched' and record[2] == ARGV[i + 1] then
    redis.call('HSET', key, 'state', 'running', 'worker', worker, 'claimed_at', at)
    redis.call('ZREM', P .. 'dispatched', id)
    redis.call('SADD', P .. 'held:' .. worker, id)
    if record[4] ~= '1' then
      event(id, record[4], record[5], '{"type":"running","at":' .. at .. ',"number":' .. record[2] .. '}')
    end
    answers[#answers + 1] = { record[3], redis.call('GET', P .. 'payload:' .. id) or '', record[7] or '0' }
  elseif record[1] == 'running' and record[2] == ARGV[i + 1] and record[6] == worker then
    answers[#answers + 1] = { record[3], redis.call('GET', P .. 'payload:' .. id) or '', record[7] or '0' }
  else
    answers[#answers + 1] = {}
  end
end
return answers
