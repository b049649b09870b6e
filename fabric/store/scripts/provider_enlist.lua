-- Jobs are about to go to a provider as one batch: who is in which is known before the provider is asked.
-- ARGV: deployment, group, what is known of it (JSON), then ids. One that is in another group leaves it.
local key, group = P .. 'provider:' .. ARGV[1], ARGV[2]
local added = 0
for i = 4, #ARGV do
  local before = redis.call('HGET', key, 'job ' .. ARGV[i])
  if before ~= group then
    if before then redis.call('HINCRBY', key, 'open ' .. before, -1) end
    redis.call('HSET', key, 'job ' .. ARGV[i], group)
    added = added + 1
  end
end
redis.call('HSET', key, 'group ' .. group, ARGV[3])
redis.call('HINCRBY', key, 'open ' .. group, added)
return added
