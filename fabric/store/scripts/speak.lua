-- Before the first word of a stream that has a second try, or is one: which of the two speaks is settled for good, and the
-- other one is told to stop.
-- ARGV: seconds a record stays, id, attempt
-- Returns 1, or 0 when the other one speaks: what this one says is dropped. 1 also for an attempt that is no longer the
--   job's: its words are refused.
-- needs: events, jobs, ending
local id, at = ARGV[2], int(now_ms())
local j = load(id)
if not j or j.state ~= 'running' or j.attempt ~= ARGV[3] or j.first_token_at then return 1 end
if not j.hedge_of then
  redis.call('HSET', job_key(id), 'first_token_at', at)
  if j.hedge then call_off(j.hedge, ARGV[1]) end
  return 1
end
local first, f = j.hedge_of, give_way(id, j)
if not f then
  call_off(id, ARGV[1])
  return 0
end
redis.call('HSET', job_key(first), 'state', 'running', 'first_token_at', at, 'spoken_by', id)
redis.call('HSET', job_key(id), 'first_token_at', at, 'hedge', first)
-- What it took is charged to the first job, whose deadline counts.
if j.charges then redis.call('HDEL', job_key(id), 'charges') end
if j.deadline then gather('ZREM', P .. 'deadlines', id) end
event(first, f.quiet, f.watchers, '{"type":"dispatched","at":' .. raw(j.dispatched_at) .. ',"number":' .. f.attempt
  .. ',"tier":' .. quoted(j.tier) .. ',"deployment":' .. quoted(j.deployment) .. '}')
event(first, f.quiet, f.watchers, '{"type":"running","at":' .. raw(j.claimed_at) .. ',"number":' .. f.attempt .. '}')
return 1
