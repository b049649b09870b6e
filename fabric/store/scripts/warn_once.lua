-- A soft budget's window is used up: told once, and counted.
-- ARGV: name, window, unit, scope, limit, used, how many notices stay. Returns 1 the first time.
-- needs: budgets
local key = budget_key(ARGV[1], ARGV[2])
if redis.call('EXISTS', key) == 0 or redis.call('HSETNX', key, 'warned', int(now_ms())) == 0 then return 0 end
redis.call('HINCRBY', P .. 'budget_warnings', ARGV[4] .. ' ' .. ARGV[3], 1)
redis.call('XADD', P .. 'notices', 'MAXLEN', '~', ARGV[7], '*', 'event', 'budget.soft_exceeded', 'budget', ARGV[1],
  'window', ARGV[2], 'unit', ARGV[3], 'limit', ARGV[5], 'used', ARGV[6])
return 1
