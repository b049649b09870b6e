-- What happens to a job, told to whoever watches it.

-- Appends an event to the job's log and hands it to whoever watches. `tail` travels with the
-- message but stays out of the log. Batch lines (`quiet`) are watched by nobody and log nothing.
local function event(id, quiet, watchers, body, tail)
  if quiet == '1' then return end
  local seq = redis.call('RPUSH', P .. 'events:' .. id, body)
  if watchers then
    local message = id .. '\n' .. seq .. '\n' .. body
    if tail then message = message .. '\n' .. tail end
    for channel in string.gmatch(watchers, '[^,]+') do redis.call('PUBLISH', channel, message) end
  end
end
