-- A scheduler returns jobs that it took and has no room for; they keep their place.
-- ARGV: ids
local count = 0
for _, id in ipairs(ARGV) do
  if redis.call('ZREM', P .. 'taken', id) == 1 then
    local j = load(id)
    if j and j.state == 'queued' then
      line_up(id, j.lane, j.due)
      count = count + 1
    end
  end
end
return count
