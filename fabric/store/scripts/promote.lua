-- Retries whose delay is over line up again.
-- ARGV: jobs at most
-- needs: backlog, jobs
local count = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', int(now_ms()), 'LIMIT', 0, ARGV[1])) do
  redis.call('ZREM', P .. 'delayed', id)
  local j = load(id)
  if j and j.state == 'queued' then
    line_up(id, j.lane, j.due)
    count = count + 1
  end
end
return count
