-- Taken jobs get their deployment and their attempt number; the message may be sent after this.
-- ARGV: ms until an unclaimed dispatch counts as lost, then per job: id, deployment, tier, how many jobs
--   the deployment may hold ('' for any number), decision
-- Returns per job the attempt number; 0 when the job is no longer this scheduler's to send, -1 when the
-- deployment is full by now, or its breaker lets nobody through: another scheduler was quicker.
-- needs: events, jobs, health
local now = now_ms()
local at, lost_at = int(now), int(now + tonumber(ARGV[1]))
local attempts, held, breaker = {}, {}, {}
for i = 2, #ARGV, 5 do
  local id, deployment, tier, limit = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  local number = 0
  if not held[deployment] then
    held[deployment] = redis.call('SCARD', P .. 'busy:' .. deployment)
    breaker[deployment] = breaker_state(health_of(deployment), deployment, now)
  end
  if (limit and held[deployment] >= limit) or (breaker[deployment] and breaker[deployment] ~= 'half_open') then
    number = -1
  elseif redis.call('ZREM', P .. 'taken', id) == 1 then
    local key = job_key(id)
    local record = redis.call('HMGET', key, 'state', 'quiet', 'watchers', 'attempt', 'left')
    if record[1] == 'queued' then
      number = record[4] + 1
      if record[5] then
        local j = load(id)
        redis.call('HINCRBY', P .. 'fallbacks', j.tier .. ' ' .. tier .. ' ' .. record[5], 1)
        move_on(id, j)
      end
      if breaker[deployment] then -- half open: this one is its probe
        healths[deployment].probe, changed[deployment], breaker[deployment] = id, true, 'probing'
      end
      redis.call('HSET', key, 'state', 'dispatched', 'attempt', int(number), 'deployment', deployment, 'tier', tier,
        'dispatched_at', at, 'decision', ARGV[i + 4])
      gather('ZADD', P .. 'dispatched', lost_at, id)
      gather('SADD', P .. 'busy:' .. deployment, id)
      held[deployment] = held[deployment] + 1
      if record[2] ~= '1' then
        event(id, record[2], record[3], '{"type":"dispatched","at":' .. at .. ',"number":' .. int(number)
          .. ',"tier":"' .. tier .. '","deployment":"' .. deployment .. '"}')
      end
    end
  end
  attempts[#attempts + 1] = number
end
return attempts
