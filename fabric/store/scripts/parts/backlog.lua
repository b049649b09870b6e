-- Jobs that wait, in lanes.

-- One token is enough to wake a scheduler: it looks at everything when it wakes. Scripts do this for
-- many jobs at once, so what needs no doing twice in one is remembered.
local woken, lined = false, {}
local function wake()
  if woken then return end
  woken = true
  if redis.call('LLEN', P .. 'wake') == 0 then redis.call('LPUSH', P .. 'wake', '1') end
end

local function line_up(id, lane, due)
  gather('ZADD', P .. 'lane:' .. lane, due, id)
  if not lined[lane] then
    lined[lane] = true
    redis.call('SADD', P .. 'lanes', lane)
  end
  wake()
end
