-- A running attempt failed and the job is not at its end. Only tries that an engine failed count against it: not
-- lost messages, workers that left or died (`deaths`), or waiting for a place that takes no more for now.
-- ARGV: seconds a record stays, rules of breakers, error for a broken stream, then per job: id, attempt, action,
--   delay (ms), error, its code, measures, US dollars spent, how it ended for its deployment
--   action: 'retry' (counts), 'wait' (doesn't), 'leave' (no further try at this deployment)
-- Returns per job 'queued', 'moving' (it waits in its tier's dead-letter queue), 'ended', or 'fenced'.
-- needs: jobs, health, ending
local answers, at = {}, now_ms()
for i = 4, #ARGV, 9 do
  local id, action = ARGV[i], ARGV[i + 2]
  local j = load(id)
  if j and j.state == 'running' and j.attempt == ARGV[i + 1] then
    local key, delay = job_key(id), tonumber(ARGV[i + 3])
    note_end(id, j.deployment, ARGV[i + 8], ARGV[2], at)
    if action == 'leave' then
      answers[#answers + 1] = set_down(id, j, { error = ARGV[i + 4], code = ARGV[i + 5], measures = ARGV[i + 6],
        cost = ARGV[i + 7], broken = ARGV[3], ttl = ARGV[1] })
    else
      if action == 'retry' then
        redis.call('HINCRBY', key, 'failures', 1)
        redis.call('HINCRBY', key, 'failures ' .. j.deployment, 1)
        delay = math.max(delay, note_retry(j.deployment, ARGV[2], at))
      end
      answers[#answers + 1] = requeue(id, j, { error = ARGV[i + 4], delay_ms = delay, measures = ARGV[i + 6], cost = ARGV[i + 7],
        broken = ARGV[3], ttl = ARGV[1] })
    end
  else
    redis.call('INCR', P .. 'fenced')
    answers[#answers + 1] = 'fenced'
  end
end
return answers
