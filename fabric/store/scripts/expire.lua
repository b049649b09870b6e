-- Jobs past their deadline: what waits ends here, what runs is stopped in its engine.
-- ARGV: jobs at most, seconds a record stays, error
-- needs: jobs, ending
local at, count = int(now_ms()), 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadlines', '-inf', at, 'LIMIT', 0, ARGV[1])) do
  redis.call('ZREM', P .. 'deadlines', id)
  local j = load(id)
  if j and (j.state == 'queued' or j.state == 'dispatched') then
    finish(id, j, 'expired', { error = ARGV[3], ttl = ARGV[2] })
    count = count + 1
  elseif j and j.state == 'running' then
    stop(id, j.worker, 'expired', ARGV[3])
    count = count + 1
  end
end
return count
