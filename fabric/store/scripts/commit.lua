-- Outcomes of running jobs. Once per job: a late or repeated commit is refused and counted.
-- ARGV: seconds a record stays, rules of breakers, then per job: id, attempt, state, result, error, measures,
--   how it ended for its deployment
-- Returns per job 1, or 0 when refused.
-- needs: jobs, health, ending, outrun
local answers, at = {}, now_ms()
for i = 3, #ARGV, 7 do
  local id = ARGV[i]
  local j = load(id, ENDING)
  if j and j.state == 'running' and j.attempt == ARGV[i + 1] then
    finish(id, j, ARGV[i + 2], { result = ARGV[i + 3], error = ARGV[i + 4], measures = ARGV[i + 5], ttl = ARGV[1] })
    note_end(id, j.deployment, ARGV[i + 6], ARGV[2], at)
    answers[#answers + 1] = 1
  elseif bill_outrun(id, ARGV[i + 1], ARGV[i + 5]) then
    answers[#answers + 1] = 1
  else
    redis.call('INCR', P .. 'fenced')
    answers[#answers + 1] = 0
  end
end
return answers
