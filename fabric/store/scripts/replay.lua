-- Parked jobs line up again under the same id, with their history and a clean slate: deaths, failures, money spent
-- and places that were tried count from nothing.
-- ARGV: per job: id, spec ('' for the one that it has). Returns per job its state after the call, or '' when unknown.
local answers = {}
for i = 1, #ARGV, 2 do
  local id = ARGV[i]
  local j = load(id)
  local answer = j and j.state or ''
  if answer == 'dead' and j.charges then answer = reserve(j.charges) or answer end
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
    if j.limits then redis.call('HSET', key, 'limits', take_again(j.limits, tonumber(at))) end
    if ARGV[i + 1] ~= '' then redis.call('HSET', key, 'spec', ARGV[i + 1]) end
    for _, field in ipairs(redis.call('HKEYS', key)) do
      if string.sub(field, 1, 8) == 'failures' then redis.call('HDEL', key, field) end
    end
    redis.call('HDEL', key, 'deaths', 'exhausted', 'spent', 'decision', 'sent_by', 'error', 'result', 'measures',
      'finished_at', 'first_token_at', 'worker', 'claimed_at', 'dispatched_at', 'deployment', 'tier')
    event(id, j.quiet, j.watchers, '{"type":"queued","at":' .. at .. '}')
    line_up(id, j.lane, j.due)
    answer = 'queued'
  end
  answers[#answers + 1] = answer
end
return answers
