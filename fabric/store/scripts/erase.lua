-- Jobs that have ended, and that the ledger has, leave for good: record, answer and log. Parked ones are dropped instead.
-- ARGV: ids. Returns per job its state before the call, or '' when it is unknown; only ended ones that aren't parked left.
local ENDED = { succeeded = true, failed = true, cancelled = true, expired = true }
local answers = {}
for _, id in ipairs(ARGV) do
  local key = job_key(id)
  local record = redis.call('HMGET', key, 'state', 'tenant')
  if record[1] and ENDED[record[1]] then
    redis.call('ZREM', P .. 'jobs:' .. record[2], id)
    redis.call('DEL', key, P .. 'events:' .. id, P .. 'payload:' .. id)
  end
  answers[#answers + 1] = record[1] or ''
end
return answers
