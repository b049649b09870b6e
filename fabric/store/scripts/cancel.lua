-- Stops a job wherever it is. What runs is stopped in its engine first: the worker commits the end.
-- ARGV: seconds a record stays, why ('cancelled' | 'expired'), error, then ids
-- Returns per job its state after the call, 'stopping' for a running one, or '' when unknown.
-- needs: jobs, ending
local answers = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local j = load(id)
  local answer = ''
  if j then
    answer = j.state
    if j.state == 'queued' or j.state == 'dispatched' then
      finish(id, j, ARGV[2], { error = ARGV[3], ttl = ARGV[1] })
      answer = ARGV[2]
    elseif j.state == 'running' then
      stop(id, j.worker, ARGV[2], ARGV[3])
      answer = 'stopping'
    end
  end
  answers[#answers + 1] = answer
end
return answers
