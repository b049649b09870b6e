-- A worker says that it lives and what it holds; it hears which of its jobs to stop. Jobs that it
-- should hold and doesn't know of (the answer to its claim was lost) go back to the backlog.
-- ARGV: worker, info, seconds the info stays, ms after a claim when an unknown job counts as forgotten,
--   error for a forgotten job, error for a broken stream, seconds a record stays, then ids of the jobs it holds
-- Returns {id, why} per job to stop: 'cancelled', 'expired', or 'lost' when it is no longer this worker's.
local worker = ARGV[1]
local at = now_ms()
redis.call('ZADD', P .. 'workers', int(at), worker)
if redis.call('GET', P .. 'worker:' .. worker) ~= ARGV[2] then wake() end
redis.call('SET', P .. 'worker:' .. worker, ARGV[2], 'EX', ARGV[3])
local stops, known, confirmed = {}, {}, 0
for i = 8, #ARGV do
  local id = ARGV[i]
  if not known[id] then
    known[id] = true
    if redis.call('SISMEMBER', P .. 'held:' .. worker, id) == 0 then
      stops[#stops + 1] = { id, 'lost' }
    else
      confirmed = confirmed + 1
      local why = redis.call('HGET', P .. 'abort:' .. worker, id)
      if why then stops[#stops + 1] = { id, why } end
    end
  end
end
if redis.call('SCARD', P .. 'held:' .. worker) > confirmed then
  for _, id in ipairs(redis.call('SMEMBERS', P .. 'held:' .. worker)) do
    if not known[id] then
      local j = load(id)
      if not j or j.state ~= 'running' or j.worker ~= worker then
        redis.call('SREM', P .. 'held:' .. worker, id)
      elseif tonumber(j.claimed_at) <= at - tonumber(ARGV[4]) then
        requeue(id, j, { error = ARGV[5], broken = ARGV[6], ttl = ARGV[7] })
      end
    end
  end
end
return stops
