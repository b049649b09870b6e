-- A scheduler ends taken jobs that can't run anywhere.
-- ARGV: seconds a record stays, then per job: id, state ('failed' | 'expired' | 'dead'), error, decision
-- needs: jobs, ending
local count = 0
for i = 2, #ARGV, 4 do
  local id = ARGV[i]
  local j = load(id)
  if j and j.state == 'queued' and redis.call('ZREM', P .. 'taken', id) == 1 then
    if ARGV[i + 3] ~= '' then
      -- The last attempt keeps the decision that sent it.
      if j.left then redis.call('HSET', job_key(id), 'sent_by', redis.call('HGET', job_key(id), 'decision') or '') end
      redis.call('HSET', job_key(id), 'decision', ARGV[i + 3])
    end
    finish(id, j, ARGV[i + 1], { error = ARGV[i + 2], ttl = ARGV[1] })
    count = count + 1
  end
end
return count
