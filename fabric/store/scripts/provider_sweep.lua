-- Finds jobs that wait in a provider batch no more, although nobody has said so: they ended, or went elsewhere,
-- while they were between two workers.
-- ARGV: deployment, cursor, fields at most. Returns {next cursor, what is known of groups that nobody waits for}.
local key, left, empty = P .. 'provider:' .. ARGV[1], {}, {}
local page = redis.call('HSCAN', key, ARGV[2], 'COUNT', ARGV[3])
for i = 1, #page[2], 2 do
  local kind, name = string.match(page[2][i], '^(%a+) (.*)$')
  if kind == 'job' then
    local job = redis.call('HMGET', job_key(name), 'state', 'deployment')
    local sent = job[1] == 'dispatched' or job[1] == 'running'
    if not (job[1] == 'queued' or (sent and job[2] == ARGV[1])) then
      redis.call('HDEL', key, page[2][i])
      left[page[2][i + 1]] = redis.call('HINCRBY', key, 'open ' .. page[2][i + 1], -1)
    end
  elseif kind == 'open' and tonumber(page[2][i + 1]) <= 0 then
    left[name] = left[name] or tonumber(redis.call('HGET', key, page[2][i]) or 0)
  end
end
for group, open in pairs(left) do
  local known = open <= 0 and redis.call('HGET', key, 'group ' .. group)
  if known then empty[#empty + 1] = known end
end
return { page[1], empty }
