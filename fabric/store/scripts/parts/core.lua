-- Names of keys, the clock, and writes that are gathered. Every script begins with it.
-- All times are milliseconds since the epoch on the server's clock, so that no worker's clock counts.

local P = 'fabric:'
local COMPLETIONS = P .. 'completions'

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function job_key(id) return P .. 'job:' .. id end
local function int(n) return string.format('%.0f', n) end

-- Scripts handle many jobs, and each command that one runs costs about a microsecond, whatever little it does. So
-- writes to an index that all jobs share are gathered and run as one command when the script ends (`command.py`
-- calls `write_gathered`). Not for what the same script reads again, nor for both adding and removing. The first is
-- run at once: a server without memory refuses a script's first write if it adds, and lets all others pass once one
-- that removes has been done. So jobs end there, and new ones don't get in by halves.
local gathered, some_written = {}, false
local GATHERED_MOST = 2000

local function run_gathered(words)
  redis.call(unpack(words))
  for n = #words, words.from, -1 do words[n] = nil end
end

local function gather(command, key, a, b)
  if not some_written then
    some_written = true
    if b then redis.call(command, key, a, b) else redis.call(command, key, a) end
    return
  end
  local name = command .. key
  local words = gathered[name]
  if not words then
    words = { command, key, from = 3 }
    gathered[name] = words
  end
  words[#words + 1] = a
  if b then words[#words + 1] = b end
  if #words > GATHERED_MOST then run_gathered(words) end
end

local function gather_deletion(key)
  local words = gathered.DEL
  if not words then
    words = { 'DEL', from = 2 }
    gathered.DEL = words
  end
  words[#words + 1] = key
  if #words > GATHERED_MOST then run_gathered(words) end
end

-- What parts of the script keep until it ends.
local at_end = {}

local function write_gathered()
  for _, keep in ipairs(at_end) do keep() end
  for _, words in pairs(gathered) do
    if words[words.from] then run_gathered(words) end
  end
end
