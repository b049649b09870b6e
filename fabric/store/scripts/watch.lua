-- A gateway follows a job: from now on its events also go to that channel.
-- ARGV: id, channel, first event wanted (1-based). Returns {state, events from there} or {} when unknown.
local id, channel, key = ARGV[1], ARGV[2], job_key(ARGV[1])
local record = redis.call('HMGET', key, 'state', 'watchers')
if not record[1] then return {} end
local watchers = record[2] or ''
if not string.find(',' .. watchers .. ',', ',' .. channel .. ',', 1, true) then
  redis.call('HSET', key, 'watchers', watchers == '' and channel or (watchers .. ',' .. channel))
end
return { record[1], redis.call('LRANGE', P .. 'events:' .. id, tonumber(ARGV[3]) - 1, -1) }
