-- Parked jobs line up again under the same id, with their history and a clean slate: deaths, failures, money spent
-- and places that were tried count from nothing.
-- ARGV: per job: id, spec ('' for the one that it has), what to reserve of budgets ('=': the same, in the same windows),
--   payload ('' for the one that it has).
-- Returns per job its state after the call, 'over' or 'unready' for what stays parked by a budget, or '' when unknown.
-- needs: events, backlog, jobs, budgets, limits
local answers = {}
for i = 1, #ARGV, 4 do
  local id = ARGV[i]
  local j = load(id)
  local answer = j and j.state or ''
  local charges = j and (ARGV[i + 2] == '=' and j.charges or ARGV[i + 2])
  if charges == '=' or charges == '' then charges = nil end
  if answer == 'dead' and charges then answer = reserve(charges) or answer end
  if answer == 'dead' then
    local at = int(now_ms())
    local key = job_key(id)
    -- Parked from the backlog it has no attempt of its own to remember.
    if j.deployment then
      local ended = redis.call('HMGET', key, 'finished_at', 'error', 'measures', 'decision', 'sent_by')
      remember(id, attempt_json(j, 'dead', ended[1], ended[2], more_json(ended[3], ended[5] or ended[4])))
    end
    redis.call('ZREM', P .. 'dead', id)
    redis.call('ZADD', P .. 'live', at, id)
    -- A deadline that is still ahead counts; one that has passed would undo the replay.
    if j.deadline and tonumber(j.deadline) > tonumber(at) then redis.call('ZADD', P .. 'deadlines', j.deadline, id) end
    redis.call('HSET', key, 'state', 'queued')
    if charges then redis.call('HSET', key, 'charges', charges) else redis.call('HDEL', key, 'charges') end
    if j.limits then redis.call('HSET', key, 'limits', take_again(j.limits, tonumber(at))) end
    if ARGV[i + 1] ~= '' then redis.call('HSET', key, 'spec', ARGV[i + 1]) end
    if ARGV[i + 3] ~= '' then redis.call('SET', P .. 'payload:' .. id, ARGV[i + 3]) end
    for _, field in ipairs(redis.call('HKEYS', key)) do
      if string.sub(field, 1, 8) == 'failures' then redis.call('HDEL', key, field) end
    end
    redis.call('HDEL', key, 'deaths', 'exhausted', 'spent', 'machine', 'decision', 'sent_by', 'error', 'result', 'measures',
      'finished_at', 'first_token_at', 'worker', 'claimed_at', 'dispatched_at', 'deployment', 'tier')
    event(id, j.quiet, j.watchers, '{"type":"queued","at":' .. at .. '}')
    line_up(id, j.lane, j.due)
    answer = 'queued'
  end
  answers[#answers + 1] = answer
end
return answers
