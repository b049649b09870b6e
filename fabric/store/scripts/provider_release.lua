-- Jobs that wait in no provider batch any more.
-- ARGV: deployment, seconds that it is kept whose bill a late answer goes on ('': no answer can come), then ids
-- Returns what is known of the groups that nobody waits for by now (JSON).
local key, bill_s, left, empty = P .. 'provider:' .. ARGV[1], ARGV[2], {}, {}
for i = 3, #ARGV do
  local group = redis.call('HGET', key, 'job ' .. ARGV[i])
  if group then
    redis.call('HDEL', key, 'job ' .. ARGV[i])
    left[group] = redis.call('HINCRBY', key, 'open ' .. group, -1)
    local j = bill_s ~= '' and load(ARGV[i])
    if j and j.state == 'running' and j.deployment == ARGV[1] then
      local bill = { j.attempt, j.tier, j.worker, j.accepted_at, j.dispatched_at or '', j.claimed_at or '', j.spec }
      redis.call('HSET', key .. ':bills:' .. group, ARGV[i], table.concat(bill, '\n'))
      redis.call('EXPIRE', key .. ':bills:' .. group, bill_s)
    end
  end
end
for group, open in pairs(left) do
  local known = open <= 0 and redis.call('HGET', key, 'group ' .. group)
  if known then empty[#empty + 1] = known end
end
return empty
