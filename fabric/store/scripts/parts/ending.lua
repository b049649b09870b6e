-- How attempts end: with the job's outcome, back in the backlog, or in a dead-letter queue; and second tries (hedges).
-- needs: events, backlog, jobs, spending, experience, budgets, limits

local stop, take_over, end_for, call_off -- below

-- The end of a job: one state, one completion entry, one event. `o`: result, error, measures (JSON
-- or ''), ttl (seconds that the record stays readable).
local function finish(id, j, state, o)
  if j.hedge_of and j.hedge == j.hedge_of then return end_for(id, j, state, o) end
  if j.hedge_of and state == 'succeeded' and take_over(id, j, o) then return end
  if j.hedge_of and state == 'dead' then state = 'failed' end -- nobody asked for it: there is nothing to replay
  local now = now_ms()
  local at, key, quiet = int(now), job_key(id), j.quiet == '1'
  local error, measures = o.error or '', o.measures or ''
  if j.hedge then call_off(j.hedge, o.ttl) end
  if j.left then measures = redis.call('HGET', key, 'left_measures') or measures end
  leave(id, j)
  if state == 'succeeded' then
    note_pace(j, now)
    -- Measures that can't be read teach nothing: they must not stop an outcome half way.
    if measures ~= '' then pcall(learn, j, measures, now) end
  end
  if j.charges then settle(id, j, measures) end
  if j.limits then give_back(id, j, measures, now) end
  if j.deadline then gather('ZREM', P .. 'deadlines', id) end
  gather('ZREM', P .. 'live', id)
  redis.call('HSET', key, 'state', state, 'finished_at', at, 'error', error, 'measures', measures)
  if j.cancel then redis.call('HDEL', key, 'cancel', 'cancel_error') end
  if j.left then redis.call('HDEL', key, 'left', 'left_at', 'left_error', 'left_measures', 'left_cost', 'dlq') end
  if not quiet and o.result and o.result ~= '' then redis.call('HSET', key, 'result', o.result) end
  local fields = { 'spec', j.spec, 'state', state, 'attempt', j.attempt,
    'deployment', j.deployment or '', 'tier', j.tier or '', 'worker', j.worker or '',
    'accepted_ms', j.accepted_at, 'dispatched_ms', j.dispatched_at or '', 'claimed_ms', j.claimed_at or '',
    'finished_ms', at, 'measures', measures, 'error', error }
  if quiet and o.result then
    fields[#fields + 1] = 'result'
    fields[#fields + 1] = o.result
    if j.placeholders then
      fields[#fields + 1] = 'placeholders'
      fields[#fields + 1] = j.placeholders
    end
  end
  if j.history then
    fields[#fields + 1] = 'attempts'
    fields[#fields + 1] = '[' .. j.history .. ']'
  end
  redis.call('XADD', COMPLETIONS, '*', unpack(fields))
  if not quiet then
    event(id, j.quiet, j.watchers, '{"type":"' .. state .. '","at":' .. at .. ',"attempt":'
      .. attempt_json(j, state, now, error) .. ',"accepted_ms":' .. j.accepted_at .. ',"measures":' .. raw(measures)
      .. (j.history and ',"spent_usd":' .. (redis.call('HGET', key, 'spent') or '0') or '') .. '}', o.result or '')
  end
  if state == 'dead' then
    redis.call('ZADD', P .. 'dead', at, id)
  else
    gather_deletion(P .. 'payload:' .. id)
    redis.call('EXPIRE', key, o.ttl)
    if not quiet then redis.call('EXPIRE', P .. 'events:' .. id, o.ttl) end
  end
end

-- Tells a running job's worker to stop it; what the job ends with if the worker can't is kept with it.
function stop(id, worker, why, error)
  local speaker = redis.call('HGET', job_key(id), 'spoken_by') or id
  redis.call('HSET', job_key(speaker), 'cancel', why, 'cancel_error', error)
  redis.call('HSET', P .. 'abort:' .. worker, speaker, why)
  redis.call('PUBLISH', P .. 'worker:' .. worker, speaker .. '\n' .. why)
end

-- Whether a job whose attempt brought no outcome ends all the same: it was to be stopped, or it is a stream that has
-- already spoken, which can't start again in a second voice: it ends with `broken`.
local function end_instead(id, j, o)
  if j.cancel then
    finish(id, j, j.cancel, { error = j.cancel_error, measures = o.measures, ttl = o.ttl })
  elseif j.first_token_at then
    finish(id, j, 'failed', { error = o.broken, measures = o.measures, ttl = o.ttl })
  else
    return false
  end
  return true
end

-- Back to the backlog after an attempt that ended without an outcome.
local function requeue(id, j, o)
  local at = now_ms()
  if end_instead(id, j, o) then return 'ended' end
  leave(id, j)
  local key = job_key(id)
  local entry = attempt_json(j, 'requeued', at, o.error)
  remember(id, attempt_json(j, 'requeued', at, o.error, more_json(o.measures, redis.call('HGET', key, 'decision'))))
  redis.call('HSET', key, 'state', 'queued')
  if o.cost and o.cost ~= '0' then spend(key, o.cost, o.measures) end
  redis.call('HDEL', key, 'worker', 'claimed_at', 'dispatched_at', 'deployment', 'tier')
  event(id, j.quiet, j.watchers, '{"type":"requeued","at":' .. int(at) .. ',"attempt":' .. entry .. '}')
  if o.delay_ms and o.delay_ms > 0 then
    redis.call('ZADD', P .. 'delayed', int(at + o.delay_ms), id)
  else
    line_up(id, j.lane, j.due)
  end
  return 'queued'
end

-- To the dead-letter queue of its tier after an attempt that leaves it no further try at its deployment: the
-- scheduler looks for its next place. Until then the record goes on describing that attempt.
-- `o`: error, its code, measures, cost (US dollars), broken, ttl
local function set_down(id, j, o)
  local at = now_ms()
  if end_instead(id, j, o) then return 'ended' end
  leave(id, j)
  local key = job_key(id)
  local exhausted = redis.call('HGET', key, 'exhausted')
  local gone = j.deployment .. ' ' .. o.code
  redis.call('HSET', key, 'state', 'queued', 'exhausted', exhausted and (exhausted .. ',' .. gone) or gone,
    'left', o.code, 'left_at', int(at), 'left_error', o.error, 'left_measures', o.measures,
    'left_cost', o.cost, 'dlq', j.tier)
  event(id, j.quiet, j.watchers, '{"type":"requeued","at":' .. int(at) .. ',"attempt":'
    .. attempt_json(j, 'exhausted', at, o.error) .. '}')
  redis.call('ZADD', P .. 'dlq:' .. j.tier, int(at), id)
  redis.call('SADD', P .. 'dlqs', j.tier)
  wake()
  return 'moving'
end

-- Hedges: a job that takes too long at one place gets a second try at another one, a job of its own (`hedge_of`). If
-- that one succeeds, or has the first word of a stream, before the first job has said anything, it is the first job's
-- next attempt, and the try that it outran is stopped. Otherwise it is stopped itself when the first job speaks or ends.
-- One that speaks (`speak.lua`) goes on under its own id where it runs: its words and its end are the first job's. There
-- it is `spoken_by`; in its own record `hedge` is then the same as `hedge_of`.
local OUTRUN = 'outrun'

-- The first job as it is with the second try for its attempt, or nil when it is too late for that.
local function give_way(id, j)
  local first, key = j.hedge_of, job_key(j.hedge_of)
  local f = load(first)
  if not f or f.hedge ~= id or f.cancel or f.first_token_at then return nil end
  if f.state ~= 'running' and f.state ~= 'dispatched' and f.state ~= 'queued' then return nil end
  local at = now_ms()
  leave(first, f)
  if f.left then
    move_on(first, f)
  elseif f.state ~= 'queued' then
    remember(first, attempt_json(f, 'outrun', at, nil, more_json(nil, redis.call('HGET', key, 'decision'))))
  end
  if f.state == 'running' then
    redis.call('HSET', key, OUTRUN, f.attempt .. '\n' .. f.deployment .. '\n' .. f.tier .. '\n' .. f.worker .. '\n'
      .. f.dispatched_at .. '\n' .. f.claimed_at)
    redis.call('HSET', P .. 'abort:' .. f.worker, first, 'outrun')
    redis.call('PUBLISH', P .. 'worker:' .. f.worker, first .. '\noutrun')
  end
  if j.charges and f.state == 'running' then
    -- Its reservation stays for what the try that was outrun has taken, until that is known.
    redis.call('HSET', key, 'outrun_charges', j.charges)
    redis.call('ZADD', P .. 'outrun', int(at), first)
  elseif j.charges then
    pay(j.charges, 0, 0)
  end
  for _, name in ipairs({ 'deployment', 'tier', 'worker', 'dispatched_at', 'claimed_at' }) do f[name] = j[name] end
  f.attempt, f.state, f.left, f.hedge, f.history = int(f.attempt + 1), 'outrun', nil, nil, redis.call('HGET', key, 'history') or nil
  redis.call('HSET', key, 'attempt', f.attempt, 'deployment', j.deployment, 'tier', j.tier, 'worker', j.worker,
    'dispatched_at', j.dispatched_at, 'claimed_at', j.claimed_at, 'decision', redis.call('HGET', job_key(id), 'decision') or '')
  redis.call('HDEL', key, 'hedge')
  redis.call('HINCRBY', P .. 'hedges', 'won', 1)
  return f
end

-- Nothing is left of the second try under its own name.
local function dissolve(id, j)
  leave(id, j)
  if j.deadline then gather('ZREM', P .. 'deadlines', id) end
  gather('ZREM', P .. 'live', id)
  gather_deletion(job_key(id))
  gather_deletion(P .. 'payload:' .. id)
end

function take_over(id, j, o)
  local f = give_way(id, j)
  if not f then return false end
  dissolve(id, j)
  finish(j.hedge_of, f, 'succeeded', { result = o.result, measures = o.measures, ttl = o.ttl })
  return true
end

-- The end of a second try that has spoken for the first job.
function end_for(id, j, state, o)
  local first, f = j.hedge_of, load(j.hedge_of)
  dissolve(id, j)
  if not f or redis.call('HGET', job_key(first), 'spoken_by') ~= id then return end
  redis.call('HDEL', job_key(first), 'spoken_by')
  f.state = 'outrun' -- it has left its own place already
  finish(first, f, state, o)
end

-- The first job has spoken or ended: its hedge isn't needed any more.
function call_off(id, ttl)
  local j = load(id)
  if not j then return end
  local error = '{"message":"The first try was quicker.","code":"outrun","type":"server_error","status":500,"fault":"fabric"}'
  if j.state == 'queued' or j.state == 'dispatched' then
    finish(id, j, 'cancelled', { error = error, ttl = ttl })
  elseif j.state == 'running' and not j.cancel then
    stop(id, j.worker, 'cancelled', error)
  end
end
