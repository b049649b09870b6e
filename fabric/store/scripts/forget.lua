-- The ledger has these ended jobs: batch lines leave nothing behind, others leave the list of open jobs and stay readable
-- until they expire. Parked jobs stay whole, and so does one that runs again.
-- ARGV: seconds a record stays, how many of the ids that follow are of lines that ended for good, the others' ids
local lines, count = tonumber(ARGV[2]), 0
for i = 3, 2 + lines do
  gather_deletion(job_key(ARGV[i])) -- its payload went when it ended, and it has no events
end
for i = 3 + lines, #ARGV do
  local id = ARGV[i]
  local key = job_key(id)
  local record = redis.call('HMGET', key, 'state', 'quiet', 'tenant', 'finished_at')
  if record[1] and record[1] ~= 'dead' and record[4] then
    if record[2] == '1' then
      gather_deletion(key)
    else
      gather('ZREM', P .. 'jobs:' .. record[3], id)
      redis.call('EXPIRE', key, ARGV[1])
      redis.call('EXPIRE', P .. 'events:' .. id, ARGV[1])
    end
    count = count + 1
  end
end
return lines + count
