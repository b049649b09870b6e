-- A job's record: read, taken out of the indexes of its state, and its attempts.
-- needs: backlog, spending

-- A job that goes round for hours (its broker is away) keeps its newest attempts.
local HISTORY_BYTES = 32768

-- Takes the job out of every index that its state put it in.
local function leave(id, j)
  if j.state == 'queued' then
    redis.call('ZREM', P .. 'lane:' .. j.lane, id)
    redis.call('ZREM', P .. 'taken', id)
    redis.call('ZREM', P .. 'delayed', id)
    if j.dlq then redis.call('ZREM', P .. 'dlq:' .. j.dlq, id) end
  elseif j.state == 'dispatched' or j.state == 'running' then
    gather('SREM', P .. 'busy:' .. j.deployment, id)
    if j.state == 'running' then
      gather('SREM', P .. 'held:' .. j.worker, id)
      if j.cancel then redis.call('HDEL', P .. 'abort:' .. j.worker, id) end
    else
      redis.call('ZREM', P .. 'dispatched', id)
    end
    if not woken and redis.call('EXISTS', P .. 'lanes') == 1 then wake() end
  end
end

local function quoted(value) return value and '"' .. value .. '"' or 'null' end
local function raw(value) return (value and value ~= '') and value or 'null' end

-- The attempt that the record describes now, as one JSON object. `more`: further fields, with a comma in front.
local function attempt_json(j, outcome, at, error, more)
  return '{"number":' .. j.attempt .. ',"deployment":' .. quoted(j.deployment) .. ',"tier":' .. quoted(j.tier)
    .. ',"worker":' .. quoted(j.worker) .. ',"outcome":"' .. outcome .. '","dispatched_ms":' .. raw(j.dispatched_at)
    .. ',"claimed_ms":' .. raw(j.claimed_at) .. ',"ended_ms":' .. int(at) .. ',"error":' .. raw(error)
    .. (more or '') .. '}'
end

local FIELDS = { 'state', 'attempt', 'lane', 'due', 'deployment', 'tier', 'worker', 'quiet', 'watchers',
  'accepted_at', 'dispatched_at', 'claimed_at', 'first_token_at', 'cancel', 'cancel_error', 'deaths', 'deadline', 'tenant', 'stream',
  'spec', 'history', 'left', 'dlq', 'placeholders', 'charges', 'limits', 'hedge', 'hedge_of' }

-- What `finish` needs of a running job. Each field read costs, and most jobs end without a detour.
local ENDING = { 'state', 'attempt', 'deployment', 'tier', 'worker', 'quiet', 'watchers', 'accepted_at',
  'dispatched_at', 'claimed_at', 'cancel', 'deadline', 'spec', 'history', 'placeholders', 'charges', 'limits', 'hedge', 'hedge_of' }

-- The record's bookkeeping as a table, or nil when there is no such job.
local function load(id, names)
  names = names or FIELDS
  local values = redis.call('HMGET', job_key(id), unpack(names))
  if not values[1] then return nil end
  local j = {}
  for i, name in ipairs(names) do j[name] = values[i] or nil end
  return j
end

-- An attempt's fields that are worth keeping beside its error: what it measured, and the decision that sent it there.
local function more_json(measures, decision)
  return ((measures and measures ~= '') and ',"measures":' .. measures or '')
    .. ((decision and decision ~= '') and ',"decision":' .. decision or '')
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

-- What `set_down` has left in the record goes into the history: the job gets a new attempt.
local function move_on(id, j)
  local key = job_key(id)
  local left = redis.call('HMGET', key, 'left_at', 'left_error', 'left_measures', 'decision', 'left_cost')
  remember(id, attempt_json(j, 'exhausted', left[1], left[2], more_json(left[3], left[4])))
  if left[5] ~= '0' then spend(key, left[5], left[3]) end
  redis.call('HDEL', key, 'left', 'left_at', 'left_error', 'left_measures', 'left_cost', 'dlq', 'worker', 'claimed_at')
end
