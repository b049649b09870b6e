-- What was decided of these jobs, for the ledger: what their last attempt rests on.
-- ARGV: ids
-- Returns per job the decision as JSON, '' when it has none or is gone.
local answers = {}
for i = 1, #ARGV do
  local decisions = redis.call('HMGET', job_key(ARGV[i]), 'sent_by', 'decision')
  answers[i] = decisions[1] or decisions[2] or ''
end
return answers
