-- What a scheduler needs to see before it takes anything.
-- ARGV: oldest heartbeat that still counts (ms ago)
-- Returns {lanes: {lane, length, due of its head}..., busy: {deployment, jobs}..., workers: {info}...,
--   dead-letter queues: {tier, jobs}..., breakers that aren't closed: {deployment, state, open until, why}...}.
-- needs: health
local at = now_ms()
local lanes, busy, workers, dlqs, breakers = {}, {}, {}, {}, {}
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
for _, tier in ipairs(redis.call('SMEMBERS', P .. 'dlqs')) do
  dlqs[#dlqs + 1] = { tier, redis.call('ZCARD', P .. 'dlq:' .. tier) }
end
local sick = redis.call('HGETALL', HEALTH)
for i = 1, #sick, 2 do
  local h = cjson.decode(sick[i + 1])
  local state = breaker_state(h, sick[i], at)
  if state then breakers[#breakers + 1] = { sick[i], state, int(h.open_until), h.why } end
end
return { lanes, busy, workers, dlqs, breakers }
