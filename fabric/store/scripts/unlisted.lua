-- ARGV: a budget's name, then ids. Returns the specs of those jobs that live and aren't counted by it.
local specs = {}
local named = '\n' .. ARGV[1] .. ' '
for i = 2, #ARGV do
  local state, charges, spec = unpack(redis.call('HMGET', job_key(ARGV[i]), 'state', 'charges', 'spec'))
  local live = state == 'queued' or state == 'dispatched' or state == 'running'
  if live and not string.find('\n' .. (charges or ''), named, 1, true) then specs[#specs + 1] = spec end
end
return specs
