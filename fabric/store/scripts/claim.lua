-- A worker takes jobs of a message for its own. A stale message gets nothing; a claim that is sent
-- again by the same worker (its answer was lost) gets the same answer.
-- Whoever names a job for a deployment that it wasn't sent to gets nothing, and of a payload in two parts a
-- worker gets that of its tier (`fabric/contracts/payload.py`).
-- ARGV: worker, deployment, then per job: id, attempt
-- Returns per job {spec, payload, tries that failed at this deployment, time now} or {} when the claim is refused.
-- needs: events
local at = int(now_ms())
local worker = ARGV[1]
-- A claim is a sign of life: whoever holds jobs is in the list that the rescue looks at.
redis.call('ZADD', P .. 'workers', 'GT', at, worker)
local answers = {}
local function failures(key, record)
  return record[7] and redis.call('HGET', key, 'failures ' .. record[8]) or '0'
end
local function part(id, tier)
  local payload = redis.call('GET', P .. 'payload:' .. id) or ''
  if string.byte(payload, 1) ~= 1 then return payload end
  local middle = 11 + tonumber(string.sub(payload, 2, 11))
  return tier == 'cloud' and string.sub(payload, middle + 1) or string.sub(payload, 12, middle)
end
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local key = job_key(id)
  local record = redis.call('HMGET', key, 'state', 'attempt', 'spec', 'quiet', 'watchers', 'worker', 'failures', 'deployment',
    'tier')
  if ARGV[2] ~= '' and record[8] ~= ARGV[2] then
    answers[#answers + 1] = {}
  elseif record[1] == 'dispatched' and record[2] == ARGV[i + 1] then
    redis.call('HSET', key, 'state', 'running', 'worker', worker, 'claimed_at', at)
    gather('ZREM', P .. 'dispatched', id)
    gather('SADD', P .. 'held:' .. worker, id)
    if record[4] ~= '1' then
      event(id, record[4], record[5], '{"type":"running","at":' .. at .. ',"number":' .. record[2] .. '}')
    end
    answers[#answers + 1] = { record[3], part(id, record[9]), failures(key, record), at }
  elseif record[1] == 'running' and record[2] == ARGV[i + 1] and record[6] == worker then
    answers[#answers + 1] = { record[3], part(id, record[9]), failures(key, record), at }
  else
    answers[#answers + 1] = {}
  end
end
return answers
