-- Pieces of streamed answers, in order. Refused when the attempt is no longer the job's. The same
-- call sent again (its answer was lost) adds nothing: a job's record names the last call that spoke.
-- ARGV: name of the call, then per piece: id, attempt, body
-- Returns per piece 1, or 0 when refused.
-- needs: events
local at, call = int(now_ms()), ARGV[1]
local answers, speaking = {}, {}
for i = 2, #ARGV, 3 do
  local id = ARGV[i]
  local key = job_key(id)
  local record = redis.call('HMGET', key, 'state', 'attempt', 'quiet', 'watchers', 'first_token_at', 'emitted')
  if record[1] == 'running' and record[2] == ARGV[i + 1] then
    if record[6] ~= call then
      redis.call('HSET', key, 'emitted', call, 'first_token_at', record[5] or at)
      speaking[id] = true
    end
    if speaking[id] then event(id, record[3], record[4], ARGV[i + 2]) end
    answers[#answers + 1] = 1
  else
    answers[#answers + 1] = 0
  end
end
return answers
