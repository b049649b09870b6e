-- How deployments fare: breakers and retry budgets, as in fabric/contracts/breaker.py, where the words are
-- explained. One JSON object per deployment that isn't well; of the others there is nothing to read.
local HEALTH = P .. 'health'
local GOOD_END, PUT_OFF_S, NOTHING = 0.2, 30, 0.01
local healths, changed, rules_of = {}, {}, nil

local function fresh() return { n = 0, bad = 0, slow = 0, row = 0, at = 0, open_until = 0, trips = 0, why = '', debt = 0, debt_at = 0 } end
local function well(h) return h.open_until == 0 and h.row == 0 and h.n == 0 and h.debt <= 0 end

local function trip(h, rules, why, at)
  local open_s = math.min(rules.open_max_s, rules.open_s * 2 ^ math.min(h.trips, 30))
  local opened = fresh()
  opened.open_until, opened.trips, opened.why = at + math.floor(open_s * 1000), h.trips + 1, why
  opened.debt, opened.debt_at = h.debt, h.debt_at
  return opened
end

-- Only the budget's debt may be left.
local function settled(h)
  local closed = fresh()
  closed.debt, closed.debt_at = h.debt, h.debt_at
  return closed
end

local function debt_of(h, rules, at)
  return math.max(0, h.debt - rules.retries_per_s * math.max(0, at - h.debt_at) / 1000)
end

-- The health after an attempt's end ('good', 'slow', 'bad' or 'neutral').
local function after(h, rules, how, at, probe)
  if h.open_until > 0 then
    if not probe or how == 'neutral' then return h end
    if how ~= 'good' then return trip(h, rules, 'probe', at) end
    return settled(h)
  end
  if how == 'neutral' or (how == 'good' and well(h)) then return h end
  if how == 'good' then
    h.debt, h.debt_at = math.max(0, debt_of(h, rules, at) - GOOD_END), at
    if h.row == 0 and h.n == 0 then return h end
  end
  local left = 0.5 ^ (math.max(0, at - h.at) / (1000 * rules.window_s))
  h.n, h.bad, h.slow = h.n * left + 1, h.bad * left, h.slow * left
  if how == 'bad' then h.bad, h.row = h.bad + 1, h.row + 1 else h.row = 0 end
  if how == 'slow' then h.slow = h.slow + 1 end
  h.at = at
  if how == 'good' then -- which never opens it
    if h.bad < NOTHING and h.slow < NOTHING then return settled(h) end
    return h
  end
  if h.row >= rules.failures then return trip(h, rules, 'failures', at) end
  if h.n >= rules.minimum and h.bad >= rules.error_rate * h.n then return trip(h, rules, 'error_rate', at) end
  if h.n >= rules.minimum and h.slow >= rules.slow_rate * h.n then return trip(h, rules, 'slow', at) end
  return h
end

-- Takes one retry out of the budget; ms that it has to wait at least.
local function put_off(h, rules, at)
  h.debt = math.min(debt_of(h, rules, at) + 1, rules.retry_burst + PUT_OFF_S * rules.retries_per_s)
  h.debt_at = at
  return math.floor(math.max(0, h.debt - rules.retry_burst) / rules.retries_per_s * 1000)
end

local function health_of(deployment)
  if healths[deployment] == nil then
    local known = redis.call('HGET', HEALTH, deployment)
    healths[deployment] = known and cjson.decode(known) or false
  end
  return healths[deployment]
end

-- `settings`: JSON, deployment -> rules; '*' for all others. Read only where something isn't well.
local function rules_for(settings, deployment)
  rules_of = rules_of or cjson.decode(settings)
  return rules_of[deployment] or rules_of['*']
end

local function note_end(id, deployment, how, settings, at)
  local h = health_of(deployment)
  if not h and (how == 'good' or how == 'neutral') then return end
  h = h or fresh()
  local probe = h.probe == id
  healths[deployment] = after(h, rules_for(settings, deployment), how, at, probe)
  if probe then healths[deployment].probe = nil end
  changed[deployment] = true
end

local function note_retry(deployment, settings, at)
  local h = health_of(deployment) or fresh()
  healths[deployment], changed[deployment] = h, true
  return put_off(h, rules_for(settings, deployment), at)
end

local function keep_health()
  for deployment in pairs(changed) do
    local h = healths[deployment]
    if well(h) then redis.call('HDEL', HEALTH, deployment) else redis.call('HSET', HEALTH, deployment, cjson.encode(h)) end
  end
end
at_end[#at_end + 1] = keep_health

-- Of a breaker that isn't closed: 'open', 'half_open', or 'probing' while its one job is there. Nil for others.
local function breaker_state(h, deployment, at)
  if not h or h.open_until == 0 then return nil end
  if at < h.open_until then return 'open' end
  if h.probe and redis.call('SISMEMBER', P .. 'busy:' .. deployment, h.probe) == 1 then return 'probing' end
  return 'half_open'
end
