-- ARGV: per budget: name, window
-- Returns per budget {reserved, spent}, or {} for one that isn't open.
-- needs: budgets
local answers = {}
for i = 1, #ARGV, 2 do
  local known = redis.call('HMGET', budget_key(ARGV[i], ARGV[i + 1]), 'reserved', 'spent')
  answers[#answers + 1] = known[1] and known or {}
end
return answers
