-- Workers share a provider's rate limit. One says what it knows, and gets permits: requests that it may send
-- without asking again. A permit is taken from what is left when it is given, and comes back when it isn't used.
-- ARGV: limit, worker, ms to pause for or '', permits that it keeps, permits that it gives back, requests that it
--   has sent so lately that the provider may not have counted them, then what the newest answer said: requests
--   left or '', its age (ms), ms until they are whole again, how many that are or ''; permits that it wants
-- Returns {ms to pause, permits, ms until more may be had, '1' when the provider says what is left}.
-- When a limit comes in sight, all workers have this long to say what they have sent before anybody gets permits.
-- Providers round: a request that comes just before a window is whole again is refused.
local RECENT_MS, KEEP_S, GATHER_MS, ROUNDED_MS, OVERTAKEN_MS = 2000, 3600, 50, 10, 100
local id, worker, wanted = ARGV[1], ARGV[2], tonumber(ARGV[11])
local key = P .. 'limit:' .. id
local holders = key .. ':holders'
local at = now_ms()
local known = redis.call('HMGET', key, 'pause_until', 'left', 'seen', 'whole_at', 'whole', 'period', 'since')
local pause_until, left, seen = tonumber(known[1] or 0), tonumber(known[2] or nil), tonumber(known[3] or 0)
local whole_at, whole, period = tonumber(known[4] or 0), tonumber(known[5] or 0), tonumber(known[6] or 0)
local since = tonumber(known[7] or at)
local news = false

if ARGV[3] ~= '' and at + tonumber(ARGV[3]) > pause_until then
  pause_until, news = at + tonumber(ARGV[3]), true
end

-- What others may have sent that no answer has told of: what they hold, as they said it last.
local mine = tonumber(ARGV[4]) + tonumber(ARGV[6])
local held, others = mine, 0
local entries = redis.call('HGETALL', holders)
for i = 1, #entries, 2 do
  local count, said = string.match(entries[i + 1], '^(%d+) (%d+)$')
  if at - tonumber(said) > RECENT_MS then
    redis.call('HDEL', holders, entries[i])
  elseif entries[i] ~= worker then
    held, others = held + tonumber(count), others + 1
  end
end

if left then left = left + tonumber(ARGV[5]) end
if ARGV[7] ~= '' then
  local told, saw = tonumber(ARGV[7]), at - tonumber(ARGV[8])
  -- Answers overtake each other: of two at about the same time the one that saw less counts.
  if saw >= seen + OVERTAKEN_MS or saw >= seen and not (left and told - held > left) then
    news = news or not left
    whole = ARGV[10] ~= '' and tonumber(ARGV[10]) or math.max(whole, told + 1)
    left, seen, whole_at = told - held, saw, saw + tonumber(ARGV[9]) + ROUNDED_MS
    -- The longest that was seen: late in a window, little is left of it.
    period = math.max(period, tonumber(ARGV[9]))
  end
end
if left and at >= whole_at then left, seen, whole_at = whole - held, at, at + period end

local granted, more_ms = 0, 0
if left then
  local gathered = since + GATHER_MS - at
  local fair = others > 0 and math.ceil(left / 2) or left
  if gathered <= 0 then granted = math.max(0, math.min(wanted, fair)) end
  left = left - granted
  -- What others hold and don't use comes back before the window is whole again.
  if gathered > 0 then
    more_ms = gathered
  elseif granted < wanted then
    more_ms = math.min(whole_at - at, (left + held > 0) and 250 or math.huge)
  end
  redis.call('HSET', holders, worker, int(mine + granted) .. ' ' .. int(at))
  redis.call('EXPIRE', holders, KEEP_S)
  redis.call('HSET', key, 'left', int(left), 'seen', int(seen), 'whole_at', int(whole_at), 'whole', int(whole),
    'period', int(period), 'since', int(since))
end
if left or pause_until > 0 then
  redis.call('HSET', key, 'pause_until', int(pause_until))
  redis.call('EXPIRE', key, KEEP_S + math.ceil(math.max(0, pause_until - at, whole_at - at) / 1000))
end
local pause_ms = math.max(0, pause_until - at)
local tells = left and '1' or ''
if news then redis.call('PUBLISH', P .. 'limits', id .. '\n' .. int(pause_ms) .. '\n' .. tells) end
return { int(pause_ms), int(granted), int(more_ms), tells }
