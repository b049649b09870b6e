-- Budgets: what a job may cost at worst is reserved when it comes in, and at its end what it did cost takes the
-- reservation's place. `charges`: a line 'NAME WINDOW LIMIT AMOUNT END UNIT/SCOPE' for each budget, as in fabric/routing/budgets.py.
local CHARGE = '(%S+) (%S+) (%S+) (%S+) (%S+) ?(%S*)'
local function budget_key(name, window) return P .. 'budget:' .. name .. ' ' .. window end

-- All of it or nothing; answers nil, or why not: 'over' or 'unready', the budget's name, the end of its window.
local function reserve(charges)
  for name, window, limit, amount, ends in string.gmatch(charges, CHARGE) do
    local known = redis.call('HMGET', budget_key(name, window), 'reserved', 'spent')
    if not known[1] then return 'unready', name, ends end
    if limit ~= '-' and known[1] + known[2] + amount > tonumber(limit) then return 'over', name, ends end
  end
  for name, window, _, amount in string.gmatch(charges, CHARGE) do
    redis.call('HINCRBY', budget_key(name, window), 'reserved', amount)
  end
end

-- What an attempt's tokens cost, in billionths of a US dollar: time on the operator's own machines isn't counted,
-- and measures that can't be read must not stop an outcome half way.
local function billed(measures)
  local cost, machine = tonumber(measures.cost_usd), tonumber(measures.machine_usd)
  return math.floor(((cost or 0) - (machine or 0)) * 1e9 + 0.5)
end

-- What was used takes the place of what was reserved: the cost, in billionths of a US dollar, and the tokens.
local function pay(charges, cost, tokens)
  for name, window, _, amount, _, unit in string.gmatch(charges, CHARGE) do
    local key = budget_key(name, window)
    if redis.call('EXISTS', key) == 1 then
      redis.call('HINCRBY', key, 'reserved', -amount)
      redis.call('HINCRBY', key, 'spent', int(string.sub(unit, 1, 6) == 'tokens' and tokens or cost))
    end
  end
end

-- Tokens of all attempts of a job, the last one's `measures` (JSON or '') included.
local function tokens_used(j, measures)
  local used = 0
  local function add(m)
    local usage = type(m) == 'table' and m.usage
    if type(usage) == 'table' then
      used = used + (tonumber(usage.input_tokens) or 0) + (tonumber(usage.output_tokens) or 0)
    end
  end
  if measures ~= '' then
    local readable, last = pcall(cjson.decode, measures)
    if readable then add(last) end
  end
  if j.history then
    for _, attempt in ipairs(cjson.decode('[' .. j.history .. ']')) do add(attempt.measures) end
  end
  return used
end

-- `measures`: of the last attempt, JSON or ''. What an earlier end of the same job has settled isn't settled again.
local function settle(id, j, measures)
  local cost = 0
  if measures ~= '' then
    local readable, last = pcall(cjson.decode, measures)
    if readable and type(last) == 'table' then cost = cost + billed(last) end
  end
  if j.history then
    for _, attempt in ipairs(cjson.decode('[' .. j.history .. ']')) do
      if type(attempt.measures) == 'table' then cost = cost + billed(attempt.measures) end
    end
  end
  local before = tonumber(redis.call('HGET', job_key(id), 'settled') or 0)
  local used, used_before = nil, 0
  if string.find(j.charges, ' tokens', 1, true) then
    used, used_before = tokens_used(j, measures), tonumber(redis.call('HGET', job_key(id), 'settled_tokens') or 0)
  end
  pay(j.charges, math.max(0, cost - before), math.max(0, (used or 0) - used_before))
  redis.call('HSET', job_key(id), 'settled', int(math.max(before, cost)))
  if used then redis.call('HSET', job_key(id), 'settled_tokens', int(math.max(used_before, used))) end
end
