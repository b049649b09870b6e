-- What a job's attempts did cost so far, in US dollars, and how much of that no cap counts.

-- Of `measures` (JSON or ''): hours of the operator's own machines.
local function machine_of(measures)
  local readable, m = pcall(cjson.decode, measures or '')
  return readable and type(m) == 'table' and tonumber(m.machine_usd) or 0
end

-- What an attempt did cost that wasn't its job's last one.
local function spend(key, cost, measures)
  redis.call('HINCRBYFLOAT', key, 'spent', cost)
  local machine = machine_of(measures)
  if machine > 0 then redis.call('HINCRBYFLOAT', key, 'machine', string.format('%.17g', machine)) end
end
