-- Jobs that were in already when a budget began to count: reserved without a limit, and settled as any other's.
-- ARGV: the budget's name, then per job: id, the line for its charges. Returns how many count from now on.
-- needs: budgets
local count = 0
local named = '\n' .. ARGV[1] .. ' '
for i = 2, #ARGV, 2 do
  local key = job_key(ARGV[i])
  local state, charges = unpack(redis.call('HMGET', key, 'state', 'charges'))
  local live = state == 'queued' or state == 'dispatched' or state == 'running'
  if live and not string.find('\n' .. (charges or ''), named, 1, true) and not reserve(ARGV[i + 1]) then
    redis.call('HSET', key, 'charges', charges and charges .. '\n' .. ARGV[i + 1] or ARGV[i + 1])
    count = count + 1
  end
end
return count
