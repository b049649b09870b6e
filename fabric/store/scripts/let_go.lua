-- The ledger has these completions: they leave the stream, and what they came to is counted, together.
-- Nothing is counted when another recorder let go of all of them before.
-- ARGV: stream's group, seconds a minute's counts stay, how many entries, their ids, then pairs: name, amount
-- Returns how many entries left.
-- needs: counts
local first, last = 4, 3 + tonumber(ARGV[3])
local acknowledged = redis.call('XACK', COMPLETIONS, ARGV[1], unpack(ARGV, first, last))
redis.call('XDEL', COMPLETIONS, unpack(ARGV, first, last))
if acknowledged > 0 then count(last + 1, ARGV[2]) end
return acknowledged
