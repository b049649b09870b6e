-- Jobs of workers whose heartbeat stopped go back to the backlog; a job that was there at too many
-- deaths is parked.
-- ARGV: ms without a heartbeat, deaths that park a job, jobs at most, seconds a record stays,
--   error for a lost worker, error for a poison job, error for a broken stream
-- Returns {jobs sent back, jobs parked}.
-- needs: jobs, ending
local at, term = now_ms(), tonumber(ARGV[1])
local sent_back, parked, budget = 0, 0, tonumber(ARGV[3])
-- Nobody can beat while the store is away, and that is no death: after a gap between two sweeps the
-- workers get a whole term to beat again.
local sweep = redis.call('HMGET', P .. 'sweep', 'last', 'since')
local last, since = tonumber(sweep[1] or 0), tonumber(sweep[2] or 0)
if at < last or at - last > term then since = at end
redis.call('HSET', P .. 'sweep', 'last', int(at), 'since', int(since))
if at - since < term then return { 0, 0 } end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', int(at - term))) do
  local held = redis.call('SRANDMEMBER', P .. 'held:' .. worker, budget)
  for _, id in ipairs(held) do
    local j = load(id)
    if j and j.state == 'running' and j.worker == worker then
      -- What waits in a provider's batch had no part in the worker's death.
      local waits = redis.call('HEXISTS', P .. 'provider:' .. j.deployment, 'job ' .. id) == 1
      local deaths = waits and 0 or redis.call('HINCRBY', job_key(id), 'deaths', 1)
      if deaths >= tonumber(ARGV[2]) and not j.cancel then
        finish(id, j, 'dead', { error = ARGV[6], ttl = ARGV[4] })
        parked = parked + 1
      else
        requeue(id, j, { error = ARGV[5], broken = ARGV[7], ttl = ARGV[4] })
        sent_back = sent_back + 1
      end
    else
      redis.call('SREM', P .. 'held:' .. worker, id)
    end
  end
  budget = budget - #held
  if budget <= 0 then break end
  redis.call('ZREM', P .. 'workers', worker)
  redis.call('DEL', P .. 'worker:' .. worker, P .. 'held:' .. worker, P .. 'abort:' .. worker)
end
return { sent_back, parked }
