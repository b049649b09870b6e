-- A provider answered jobs that had been withdrawn, and charges for it: each gets one more completion, with the
-- number of its attempt below zero, that ends nothing.
-- ARGV: deployment, group, then per job: id, measures (JSON)
-- Returns how many had been withdrawn and weren't accounted for yet.
local bills, at, count = P .. 'provider:' .. ARGV[1] .. ':bills:' .. ARGV[2], int(now_ms()), 0
for i = 3, #ARGV, 2 do
  local bill = redis.call('HGET', bills, ARGV[i])
  if bill then
    redis.call('HDEL', bills, ARGV[i])
    local attempt, tier, worker, accepted, dispatched, claimed, spec =
      string.match(bill, '^(%d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n(.*)$')
    redis.call('XADD', COMPLETIONS, '*', 'spec', spec, 'state', 'requeued', 'attempt', '-' .. attempt,
      'deployment', ARGV[1], 'tier', tier, 'worker', worker, 'accepted_ms', accepted, 'dispatched_ms', dispatched,
      'claimed_ms', claimed, 'finished_ms', at, 'measures', ARGV[i + 1], 'error', '')
    count = count + 1
  end
end
return count
