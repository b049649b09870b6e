-- Pieces of streamed answers, in order. Refused when the attempt is no longer the job's. The same
-- call sent again (its answer was lost) adds nothing: a job's record names the last call that spoke.
-- Of a job and its second try one speaks; which one, `speak.lua` settles before the first word.
-- ARGV: name of the call, then per piece: id, attempt, body
-- Returns per piece 1, 0 when refused, or -1 where it isn't settled yet who speaks: then nothing was added.
-- needs: events
local at, call = int(now_ms()), ARGV[1]
local answers, speaking = {}, {}
for i = 2, #ARGV, 3 do
  local id = ARGV[i]
  local key = job_key(id)
  local record = redis.call('HMGET', key, 'state', 'attempt', 'quiet', 'watchers', 'first_token_at', 'emitted', 'hedge',
    'hedge_of')
  if record[1] ~= 'running' or record[2] ~= ARGV[i + 1] then
    -- Whoever was outrun is told to stop, and says what it took: it hasn't lost its job.
    local outrun = redis.call('HGET', key, 'outrun')
    answers[#answers + 1] = outrun and string.match(outrun, '^%d+') == ARGV[i + 1] and 1 or 0
  elseif (record[7] or record[8]) and not record[5] then
    answers[#answers + 1] = -1
  else
    if record[6] ~= call then
      redis.call('HSET', key, 'emitted', call, 'first_token_at', record[5] or at)
      speaking[id] = true
    end
    if speaking[id] and record[8] then
      local heard = redis.call('HMGET', job_key(record[8]), 'quiet', 'watchers')
      event(record[8], heard[1], heard[2], ARGV[i + 2])
    elseif speaking[id] then
      event(id, record[3], record[4], ARGV[i + 2])
    end
    answers[#answers + 1] = 1
  end
end
return answers
