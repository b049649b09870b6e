-- A scheduler takes jobs from the head of lanes, on a lease: if it dies, they go back by themselves.
-- ARGV: lease (ms), then per lane: lane, how many. 'dlq:<tier>' is a dead-letter queue.
-- Returns per job {lane, spec, attempts so far, history, time now, exhausted deployments, US dollars spent
--   of what it may cost (hours of one's own machines aren't), last error}.
-- needs: spending
local at = now_ms()
local lease = int(at + tonumber(ARGV[1]))
local taken = {}
local function spent(record)
  if not record[5] and not record[7] then return '0' end
  local machine = (record[8] or 0) + machine_of(record[9])
  return string.format('%.17g', math.max(0, (record[5] or 0) + (record[7] or 0) - machine))
end
for i = 2, #ARGV, 2 do
  local tier = string.match(ARGV[i], '^dlq:(.*)')
  local key = tier and P .. ARGV[i] or P .. 'lane:' .. ARGV[i]
  local popped = redis.call('ZPOPMIN', key, ARGV[i + 1])
  for n = 1, #popped, 2 do
    local id = popped[n]
    local record = redis.call('HMGET', job_key(id), 'spec', 'attempt', 'history', 'exhausted', 'spent', 'left_error', 'left_cost',
      'machine', 'left_measures')
    if record[1] then
      if tier then redis.call('HDEL', job_key(id), 'dlq') end
      gather('ZADD', P .. 'taken', lease, id)
      taken[#taken + 1] = { ARGV[i], record[1], record[2], record[3] or '', int(at), record[4] or '', spent(record), record[6] or '' }
    end
  end
  if redis.call('EXISTS', key) == 0 then redis.call('SREM', P .. (tier and 'dlqs' or 'lanes'), tier or ARGV[i]) end
end
return taken
