-- What is counted outside of the completion stream.

-- Adds pairs (name, amount) of ARGV, from one on, to what is counted for good and in this minute.
local function count(from, minute_s)
  local minute = P .. 'minute:' .. int(math.floor(now_ms() / 60000))
  for i = from, #ARGV, 2 do
    redis.call('HINCRBYFLOAT', P .. 'totals', ARGV[i], ARGV[i + 1])
    redis.call('HINCRBYFLOAT', minute, ARGV[i], ARGV[i + 1])
  end
  if from < #ARGV then redis.call('EXPIRE', minute, minute_s) end
end
