-- A scheduler takes jobs from the head of lanes, on a lease: if it dies, they go back by themselves.
-- ARGV: lease (ms), then per lane: lane, how many
-- Returns per job {lane, spec, attempts so far, history, time now}.
local at = now_ms()
local lease = int(at + tonumber(ARGV[1]))
local taken = {}
for i = 2, #ARGV, 2 do
  local key = P .. 'lane:' .. ARGV[i]
  local popped = redis.call('ZPOPMIN', key, ARGV[i + 1])
  for n = 1, #popped, 2 do
    local id = popped[n]
    local record = redis.call('HMGET', job_key(id), 'spec', 'attempt', 'history')
    if record[1] then
      redis.call('ZADD', P .. 'taken', lease, id)
      taken[#taken + 1] = { ARGV[i], record[1], record[2], record[3] or '', int(at) }
    end
  end
  if redis.call('EXISTS', key) == 0 then redis.call('SREM', P .. 'lanes', ARGV[i]) end
end
return taken
