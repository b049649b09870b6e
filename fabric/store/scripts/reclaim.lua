-- Dispatches that nobody claimed, and jobs whose scheduler died with them in hand, go back.
-- ARGV: jobs at most, error for a lost dispatch
-- Returns {dispatches reclaimed, takes reclaimed}.
local at, limit = int(now_ms()), ARGV[1]
local dispatched, taken = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'dispatched', '-inf', at, 'LIMIT', 0, limit)) do
  local j = load(id)
  if j and j.state == 'dispatched' then
    requeue(id, j, { error = ARGV[2] })
    dispatched = dispatched + 1
  else
    redis.call('ZREM', P .. 'dispatched', id)
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'taken', '-inf', at, 'LIMIT', 0, limit)) do
  redis.call('ZREM', P .. 'taken', id)
  local j = load(id)
  if j and j.state == 'queued' then
    line_up(id, j.lane, j.due)
    taken = taken + 1
  end
end
return { dispatched, taken }
