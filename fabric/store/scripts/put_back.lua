-- A scheduler returns jobs that it took and has no room for; they keep their place in time.
-- ARGV: per job: id, lane to wait in from now on ('' for the one it came from)
-- needs: backlog, jobs
local count = 0
for i = 1, #ARGV, 2 do
  local id, lane = ARGV[i], ARGV[i + 1]
  if redis.call('ZREM', P .. 'taken', id) == 1 then
    local j = load(id)
    if j and j.state == 'queued' then
      if lane ~= '' and lane ~= j.lane then
        redis.call('HSET', job_key(id), 'lane', lane)
        j.lane = lane
      end
      line_up(id, j.lane, j.due)
      count = count + 1
    end
  end
end
return count
