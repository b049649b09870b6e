-- Dispatches whose message could not be sent, or that a worker declined, go back. No blame, no delay.
-- ARGV: error, then per job: id, attempt
-- needs: jobs, ending
local count = 0
for i = 2, #ARGV, 2 do
  local j = load(ARGV[i])
  if j and j.state == 'dispatched' and j.attempt == ARGV[i + 1] then
    requeue(ARGV[i], j, { error = ARGV[1] })
    count = count + 1
  end
end
return count
