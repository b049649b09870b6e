-- Jobs that wait in no provider batch any more.
-- ARGV: deployment, seconds that it is kept whose bill a late answer goes on ('': no answer can come; 'answered': it
--   came, and those that haven't ended stay, for it was lost on its way), then ids
-- Returns what is known of the groups that nobody waits for by now (JSON).
-- needs: jobs
local key, how, left, empty = P .. 'provider:' .. ARGV[1], ARGV[2], {}, {}
local bill_s = how ~= 'answered' and how or ''

local function is_open(id)
  local job = redis.call('HMGET', job_key(id), 'state', 'deployment')
  return job[1] == 'queued' or ((job[1] == 'dispatched' or job[1] == 'running') and job[2] == ARGV[1])
end

for i = 3, #ARGV do
  local group = redis.call('HGET', key, 'job ' .. ARGV[i])
  if group and not (how == 'answered' and is_open(ARGV[i])) then
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
