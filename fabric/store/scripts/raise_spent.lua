-- Windows of budgets in which the ledger knows of more than the store does.
-- ARGV: per budget: name, window, what was spent at least. Returns how many went up.
-- needs: budgets
local count = 0
for i = 1, #ARGV, 3 do
  local key = budget_key(ARGV[i], ARGV[i + 1])
  local spent = redis.call('HGET', key, 'spent')
  if spent and tonumber(spent) < tonumber(ARGV[i + 2]) then
    redis.call('HSET', key, 'spent', ARGV[i + 2])
    count = count + 1
  end
end
return count
