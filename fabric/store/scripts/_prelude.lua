-- Shared by every script: names of keys, the clock, and the steps that several transitions take.
-- All times are milliseconds since the epoch on the server's clock, so that no worker's clock counts.

local P = 'fabric:'
local COMPLETIONS = P .. 'completions'
local HISTORY_BYTES = 16384
local PACE_WEIGHT = 0.1

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function job_key(id) return P .. 'job:' .. id end
local function int(n) return string.format('%.0f', n) end

-- One token is enough to wake a scheduler: it looks at everything when it wakes. Scripts do this for
-- many jobs at once, so what needs no doing twice in one is remembered.
local woken, lined = false, {}
local function wake()
  if woken then return end
  woken = true
  if redis.call('LLEN', P .. 'wake') == 0 then redis.call('LPUSH', P .. 'wake', '1') end
end

-- Appends an event to the job's log and hands it to whoever watches. `tail` travels with the
-- message but stays out of the log. Batch lines (`quiet`) are watched by nobody and log nothing.
local function event(id, quiet, watchers, body, tail)
  if quiet == '1' then return end
  local seq = redis.call('RPUSH', P .. 'events:' .. id, body)
  if watchers then
    local message = id .. '\n' .. seq .. '\n' .. body
    if tail then message = message .. '\n' .. tail end
    for channel in string.gmatch(watchers, '[^,]+') do redis.call('PUBLISH', channel, message) end
  end
end

local function line_up(id, lane, due)
  redis.call('ZADD', P .. 'lane:' .. lane, due, id)
  if not lined[lane] then
    lined[lane] = true
    redis.call('SADD', P .. 'lanes', lane)
  end
  wake()
end

-- Takes the job out of every index that its state put it in.
local function leave(id, j)
  if j.state == 'queued' then
    redis.call('ZREM', P .. 'lane:' .. j.lane, id)
    redis.call('ZREM', P .. 'taken', id)
    redis.call('ZREM', P .. 'delayed', id)
  elseif j.state == 'dispatched' or j.state == 'running' then
    redis.call('SREM', P .. 'busy:' .. j.deployment, id)
    if j.state == 'running' then
      redis.call('SREM', P .. 'held:' .. j.worker, id)
      if j.cancel then redis.call('HDEL', P .. 'abort:' .. j.worker, id) end
    else
      redis.call('ZREM', P .. 'dispatched', id)
    end
    if not woken and redis.call('EXISTS', P .. 'lanes') == 1 then wake() end
  end
end

local function quoted(value) return value and '"' .. value .. '"' or 'null' end
local function raw(value) return (value and value ~= '') and value or 'null' end

-- The attempt that the record describes now, as one JSON object.
local function attempt_json(j, outcome, at, error)
  return '{"number":' .. j.attempt .. ',"deployment":' .. quoted(j.deployment) .. ',"tier":' .. quoted(j.tier)
    .. ',"worker":' .. quoted(j.worker) .. ',"outcome":"' .. outcome .. '","dispatched_ms":' .. raw(j.dispatched_at)
    .. ',"claimed_ms":' .. raw(j.claimed_at) .. ',"ended_ms":' .. int(at) .. ',"error":' .. raw(error) .. '}'
end

local FIELDS = { 'state', 'attempt', 'lane', 'due', 'deployment', 'tier', 'worker', 'quiet', 'watchers',
  'accepted_at', 'dispatched_at', 'claimed_at', 'first_token_at', 'cancel', 'cancel_error', 'deaths', 'deadline', 'tenant', 'stream',
  'spec' }

-- What `finish` needs of a running job. Each field read costs, and most jobs end without a detour.
local ENDING = { 'state', 'attempt', 'deployment', 'tier', 'worker', 'quiet', 'watchers', 'accepted_at',
  'dispatched_at', 'claimed_at', 'cancel', 'deadline', 'spec' }

-- The record's bookkeeping as a table, or nil when there is no such job.
local function load(id, names)
  names = names or FIELDS
  local values = redis.call('HMGET', job_key(id), unpack(names))
  if not values[1] then return nil end
  local j = {}
  for i, name in ipairs(names) do j[name] = values[i] or nil end
  return j
end

-- Keeps the mean time from dispatch to end of a deployment's jobs, the newest counting most. With the
-- number of jobs it holds at once this is its throughput (Little's law): that is what an ETA is made of.
local paces = {}
local function note_pace(j, at)
  if not j.dispatched_at then return end
  local s = (at - tonumber(j.dispatched_at)) / 1000
  local mean = paces[j.deployment] or tonumber(redis.call('HGET', P .. 'pace', j.deployment) or s)
  paces[j.deployment] = mean + PACE_WEIGHT * (s - mean)
end

local function keep_paces()
  for deployment, mean in pairs(paces) do
    redis.call('HSET', P .. 'pace', deployment, string.format('%.4f', mean))
  end
end

-- What succeeded jobs teach of the next ones: per endpoint and deployment how quick it is, per endpoint and
-- model how long its answers get. Two calls for all the jobs of a script, however many they are.
local EXPERIENCE = P .. 'experience'
local lessons, learned = {}, false

-- A mean of `n` values, the newest included: of the first ones plain, then the newest count most.
local function toward(mean, value, n) return mean + math.max(PACE_WEIGHT, 1 / n) * (value - mean) end

local function lesson_of(pace, length)
  if not lessons[pace] or not lessons[length] then
    local known = redis.call('HMGET', EXPERIENCE, pace, length)
    lessons[pace] = lessons[pace] or (known[1] and cjson.decode(known[1]))
      or { n = 0, at = 0, engine_s = 0, token_s = 0, first_n = 0, x = 0, y = 0, xx = 0, xy = 0 }
    lessons[length] = lessons[length] or (known[2] and cjson.decode(known[2])) or { n = 0, at = 0, tokens = 0 }
  end
  return lessons[pace], lessons[length]
end

local function learn(j, measures, at)
  local endpoint, model = string.match(j.spec, '^{"id":"[^"]*","endpoint":"([^"]*)","model":"([^"]*)"')
  local m = cjson.decode(measures)
  local prompt = tonumber(string.match(j.spec, '"prompt_tokens":(%d+)') or 0)
  local engine, tokens, first = tonumber(m.engine_s), tonumber(m.usage.output_tokens), tonumber(m.first_token_s)
  if not endpoint or not engine or engine <= 0 then return end
  local pace, length = lesson_of('pace ' .. endpoint .. ' ' .. j.deployment, 'length ' .. endpoint .. ' ' .. model)
  pace.n, pace.at = pace.n + 1, at
  pace.engine_s = toward(pace.engine_s, engine, pace.n)
  if tokens > 0 then
    length.n, length.at = length.n + 1, at
    length.tokens = toward(length.tokens, tokens, length.n)
    pace.token_s = toward(pace.token_s, math.max(0, engine - (first or 0)) / tokens, pace.n)
  else
    first = first or engine -- embeddings: all of it goes by the prompt
  end
  if first then
    local n = pace.first_n + 1
    pace.first_n = n
    pace.x, pace.y = toward(pace.x, prompt, n), toward(pace.y, first, n)
    pace.xx, pace.xy = toward(pace.xx, prompt * prompt, n), toward(pace.xy, prompt * first, n)
  end
  learned = true
end

local function keep_experience()
  if not learned then return end
  local fields = {}
  for name, lesson in pairs(lessons) do
    if lesson.n > 0 then
      fields[#fields + 1] = name
      fields[#fields + 1] = cjson.encode(lesson)
    end
  end
  redis.call('HSET', EXPERIENCE, unpack(fields))
end

-- The end of a job: one state, one completion entry, one event. `o`: result, error, measures (JSON
-- or ''), ttl (seconds that the record stays readable).
local function finish(id, j, state, o)
  local now = now_ms()
  local at, key, quiet = int(now), job_key(id), j.quiet == '1'
  local error, measures = o.error or '', o.measures or ''
  leave(id, j)
  if state == 'succeeded' then
    note_pace(j, now)
    -- Measures that can't be read teach nothing: they must not stop an outcome half way.
    if measures ~= '' then pcall(learn, j, measures, now) end
  end
  if j.deadline then redis.call('ZREM', P .. 'deadlines', id) end
  redis.call('ZREM', P .. 'live', id)
  redis.call('HSET', key, 'state', state, 'finished_at', at, 'error', error, 'measures', measures)
  if j.cancel then redis.call('HDEL', key, 'cancel', 'cancel_error') end
  if not quiet and o.result and o.result ~= '' then redis.call('HSET', key, 'result', o.result) end
  local fields = { 'spec', j.spec, 'state', state, 'attempt', j.attempt,
    'deployment', j.deployment or '', 'tier', j.tier or '', 'worker', j.worker or '',
    'accepted_ms', j.accepted_at, 'dispatched_ms', j.dispatched_at or '', 'claimed_ms', j.claimed_at or '',
    'finished_ms', at, 'measures', measures, 'error', error }
  if quiet and o.result then
    fields[#fields + 1] = 'result'
    fields[#fields + 1] = o.result
  end
  redis.call('XADD', COMPLETIONS, '*', unpack(fields))
  if not quiet then
    event(id, j.quiet, j.watchers, '{"type":"' .. state .. '","at":' .. at .. ',"attempt":'
      .. attempt_json(j, state, now, error) .. ',"accepted_ms":' .. j.accepted_at .. ',"measures":' .. raw(measures)
      .. '}', o.result or '')
  end
  if state == 'dead' then
    redis.call('ZADD', P .. 'dead', at, id)
  else
    redis.call('DEL', P .. 'payload:' .. id)
    redis.call('EXPIRE', key, o.ttl)
    if not quiet then redis.call('EXPIRE', P .. 'events:' .. id, o.ttl) end
  end
end

-- Adds an attempt to the job's history. A job that goes round for hours (its broker is away) keeps the newest.
local function remember(id, entry)
  local key = job_key(id)
  local history = redis.call('HGET', key, 'history')
  history = history and (history .. ',' .. entry) or entry
  while #history > HISTORY_BYTES do
    local second = string.find(history, ',{"number":', 1, true)
    if not second then break end
    history = string.sub(history, second + 1)
  end
  redis.call('HSET', key, 'history', history)
end

-- Tells a running job's worker to stop it; what the job ends with if the worker can't is kept with it.
local function stop(id, worker, why, error)
  redis.call('HSET', job_key(id), 'cancel', why, 'cancel_error', error)
  redis.call('HSET', P .. 'abort:' .. worker, id, why)
  redis.call('PUBLISH', P .. 'worker:' .. worker, id .. '\n' .. why)
end

-- Back to the backlog after an attempt that ended without an outcome. A stream that has already
-- spoken can't start again in a second voice: it ends with `broken` instead.
local function requeue(id, j, o)
  local at = now_ms()
  if j.cancel then
    finish(id, j, j.cancel, { error = j.cancel_error, ttl = o.ttl })
    return 'ended'
  end
  if j.first_token_at then
    finish(id, j, 'failed', { error = o.broken, ttl = o.ttl })
    return 'ended'
  end
  leave(id, j)
  local key = job_key(id)
  local entry = attempt_json(j, 'requeued', at, o.error)
  remember(id, entry)
  redis.call('HSET', key, 'state', 'queued')
  redis.call('HDEL', key, 'worker', 'claimed_at', 'dispatched_at', 'deployment', 'tier')
  event(id, j.quiet, j.watchers, '{"type":"requeued","at":' .. int(at) .. ',"attempt":' .. entry .. '}')
  if o.delay_ms and o.delay_ms > 0 then
    redis.call('ZADD', P .. 'delayed', int(at + o.delay_ms), id)
  else
    line_up(id, j.lane, j.due)
  end
  return 'queued'
end
