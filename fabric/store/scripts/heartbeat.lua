-- A worker says that it lives and what it holds; it hears which of its jobs to stop. Jobs that it
-- should hold and doesn't know of (the answer to its claim was lost) go back to the backlog.
-- ARGV: worker, info, seconds the info stays, ms after a claim when an unknown job counts as forgotten,
--   error for a forgotten job, error for a broken stream, seconds a record stays, then ids of the jobs it holds
-- Returns {id, why} per job to stop: 'cancelled', 'expired', 'outrun', or 'lost' when it is no longer this worker's.
-- needs: backlog, jobs, ending
local worker = ARGV[1]
local at = now_ms()
redis.call('ZADD', P .. 'workers', int(at), worker)
if redis.call('GET', P .. 'worker:' .. worker) ~= ARGV[2] then wake() end
redis.call('SET', P .. 'worker:' .. worker, ARGV[2], 'EX', ARGV[3])
local stops, known, confirmed = {}, {}, 0
-- A worker may hold ten thousand jobs that wait for a provider: many in a call.
local aborts = {}
local told = redis.call('HGETALL', P .. 'abort:' .. worker)
for i = 1, #told, 2 do aborts[told[i]] = told[i + 1] end
for from = 8, #ARGV, 1000 do
  local to = math.min(from + 999, #ARGV)
  local here = redis.call('SMISMEMBER', P .. 'held:' .. worker, unpack(ARGV, from, to))
  for i = from, to do
    local id = ARGV[i]
    if not known[id] then
      known[id] = true
      if here[i - from + 1] == 0 then
        stops[#stops + 1] = { id, aborts[id] == 'outrun' and 'outrun' or 'lost' }
      else
        confirmed = confirmed + 1
        if aborts[id] then stops[#stops + 1] = { id, aborts[id] } end
      end
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
