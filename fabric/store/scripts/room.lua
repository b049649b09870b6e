-- What a scheduler needs to see before it takes anything.
-- ARGV: oldest heartbeat that still counts (ms ago)
-- Returns {lanes: {lane, length, due of its head}..., busy: {deployment, jobs}..., workers: {info}...}.
local lanes, busy, workers = {}, {}, {}
for _, lane in ipairs(redis.call('SMEMBERS', P .. 'lanes')) do
  local head = redis.call('ZRANGE', P .. 'lane:' .. lane, 0, 0, 'WITHSCORES')
  if head[1] then
    lanes[#lanes + 1] = { lane, redis.call('ZCARD', P .. 'lane:' .. lane), head[2] }
  else
    redis.call('SREM', P .. 'lanes', lane)
  end
end
local seen = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', now_ms() - tonumber(ARGV[1]), '+inf')) do
  local info = redis.call('GET', P .. 'worker:' .. id)
  if info then
    workers[#workers + 1] = info
    for deployment in pairs(cjson.decode(info).capacity) do
      if not seen[deployment] then
        seen[deployment] = true
        busy[#busy + 1] = { deployment, redis.call('SCARD', P .. 'busy:' .. deployment) }
      end
    end
  end
end
return { lanes, busy, workers }
