-- Budgets begin to count. One that counts already stays as it is.
-- ARGV: per budget: name, window, spent so far, second of the epoch at which it may be forgotten (0: never)
-- Returns how many were new.
-- needs: budgets
local count = 0
for i = 1, #ARGV, 4 do
  local key = budget_key(ARGV[i], ARGV[i + 1])
  if redis.call('HSETNX', key, 'spent', ARGV[i + 2]) == 1 then
    redis.call('HSETNX', key, 'reserved', '0')
    if ARGV[i + 3] ~= '0' then redis.call('EXPIREAT', key, ARGV[i + 3]) end
    count = count + 1
  end
end
return count
