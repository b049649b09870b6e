-- A worker that leaves returns what it holds; nobody died, so nothing is counted against the jobs.
-- ARGV: worker, error, error for a broken stream, seconds a record stays, then ids: of these jobs only, and the
--   worker stays
-- needs: jobs, ending
local worker, count = ARGV[1], 0
for i = 5, #ARGV do
  local j = load(ARGV[i])
  if j and j.state == 'running' and j.worker == worker then
    requeue(ARGV[i], j, { error = ARGV[2], broken = ARGV[3], ttl = ARGV[4] })
    count = count + 1
  end
end
if ARGV[5] then return count end
for _, id in ipairs(redis.call('SMEMBERS', P .. 'held:' .. worker)) do
  local j = load(id)
  if j and j.state == 'running' and j.worker == worker then
    requeue(id, j, { error = ARGV[2], broken = ARGV[3], ttl = ARGV[4] })
    count = count + 1
  end
end
redis.call('ZREM', P .. 'workers', worker)
redis.call('DEL', P .. 'worker:' .. worker, P .. 'held:' .. worker, P .. 'abort:' .. worker)
return count
