-- Dispatches that nobody claimed, and jobs whose scheduler died with them in hand, go back. What was kept for tries that
-- were outrun, and whose workers never said what they had taken, is let go.
-- ARGV: jobs at most, error for a lost dispatch, ms that such a worker may take
-- Returns {dispatches reclaimed, takes reclaimed}.
-- needs: backlog, jobs, ending, outrun
local now, limit = now_ms(), ARGV[1]
local at = int(now)
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
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'outrun', '-inf', int(now - tonumber(ARGV[3])), 'LIMIT', 0, limit)) do
  settle_outrun(id, 0, 0)
end
return { dispatched, taken }
