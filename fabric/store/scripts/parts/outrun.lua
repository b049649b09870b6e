-- What a try that was outrun by a second one had taken.
-- needs: budgets, ending

-- `cost`, `tokens`: of the try that was outrun; in billionths of a US dollar.
local function settle_outrun(id, cost, tokens)
  redis.call('ZREM', P .. 'outrun', id)
  local charges = redis.call('HGET', job_key(id), 'outrun_charges')
  if not charges then return end
  redis.call('HDEL', job_key(id), 'outrun_charges')
  pay(charges, cost, tokens)
end

-- What the try that was outrun had taken, once its worker says so: one more completion, with its number below zero.
local function bill_outrun(id, attempt, measures)
  local record = redis.call('HMGET', job_key(id), OUTRUN, 'spec', 'accepted_at')
  if not record[1] then return false end
  local number, deployment, tier, worker, dispatched, claimed =
    string.match(record[1], '^(%d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)$')
  if number ~= attempt then return false end
  redis.call('HDEL', job_key(id), OUTRUN)
  redis.call('HDEL', P .. 'abort:' .. worker, id)
  local readable, used = pcall(cjson.decode, measures)
  readable = readable and type(used) == 'table'
  settle_outrun(id, readable and billed(used) or 0, tokens_used({}, readable and measures or ''))
  if measures ~= '' then
    redis.call('XADD', COMPLETIONS, '*', 'spec', record[2], 'state', 'requeued', 'attempt', '-' .. attempt,
      'deployment', deployment, 'tier', tier, 'worker', worker, 'accepted_ms', record[3], 'dispatched_ms', dispatched,
      'claimed_ms', claimed, 'finished_ms', int(now_ms()), 'measures', measures, 'error', '')
  end
  return true
end
