-- Parked jobs line up again under the same id, with their history and a clean slate of deaths and failures.
-- ARGV: ids. Returns per job its state after the call, or '' when unknown.
local answers = {}
for _, id in ipairs(ARGV) do
  local j = load(id)
  local answer = j and j.state or ''
  if answer == 'dead' then
    local at = int(now_ms())
    local key = job_key(id)
    -- Parked from the backlog it has no attempt of its own to remember.
    if j.deployment then
      local ended = redis.call('HMGET', key, 'finished_at', 'error')
      remember(id, attempt_json(j, 'dead', ended[1], ended[2]))
    end
    redis.call('ZREM', P .. 'dead', id)
    redis.call('ZADD', P .. 'live', at, id)
    -- A deadline that is still ahead counts; one that has passed would undo the replay.
    if j.deadline and tonumber(j.deadline) > tonumber(at) then redis.call('ZADD', P .. 'deadlines', j.deadline, id) end
    redis.call('HSET', key, 'state', 'queued')
    redis.call('HDEL', key, 'deaths', 'failures', 'error', 'result', 'measures', 'finished_at', 'first_token_at', 'worker',
      'claimed_at', 'dispatched_at', 'deployment', 'tier')
    event(id, j.quiet, j.watchers, '{"type":"queued","at":' .. at .. '}')
    line_up(id, j.lane, j.due)
    answer = 'queued'
  end
  answers[#answers + 1] = answer
end
return answers
