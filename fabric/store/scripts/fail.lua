-- A running attempt failed and the job is not at its end: it waits for its next try. Only these
-- failures count against a job: not lost messages, workers that left, or workers that died (`deaths`).
-- ARGV: seconds a record stays, error for a broken stream, then per job: id, attempt, delay (ms), error
-- Returns per job 'queued', 'ended', or 'fenced'.
local answers = {}
for i = 3, #ARGV, 4 do
  local id = ARGV[i]
  local j = load(id)
  if j and j.state == 'running' and j.attempt == ARGV[i + 1] then
    redis.call('HINCRBY', job_key(id), 'failures', 1)
    answers[#answers + 1] = requeue(id, j, { error = ARGV[i + 3], delay_ms = tonumber(ARGV[i + 2]),
      broken = ARGV[2], ttl = ARGV[1] })
  else
    redis.call('INCR', P .. 'fenced')
    answers[#answers + 1] = 'fenced'
  end
end
return answers
