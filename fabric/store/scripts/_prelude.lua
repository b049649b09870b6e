-- Shared by every script: names of keys, the clock, and the steps that several transitions take.
-- All times are milliseconds since the epoch on the server's clock, so that no worker's clock counts.

local P = 'fabric:'
local COMPLETIONS = P .. 'completions'
local HISTORY_BYTES = 32768
local PACE_WEIGHT = 0.1

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

-- Rate limits (`fabric/routing/limits.py`): one hash an owner. A limit by the minute is one number, the moment at which
-- all of it will be back (GCRA: a bucket that holds a minute's worth and fills evenly); what counts jobs and tokens that
-- are under way is counted. Read once in a script and written when it ends. What nobody uses is forgotten: it is full.
local MINUTE_MS, UNUSED_S = 60000, 3600
local rates = {}
local function rate_key(owner) return P .. 'rate:' .. owner end

local function rate_of(owner)
  local rate = rates[owner]
  if not rate then
    local known = redis.call('HMGET', rate_key(owner), 'requests_at', 'tokens_at', 'jobs', 'batch_tokens')
    rate = { requests_at = tonumber(known[1] or 0), tokens_at = tonumber(known[2] or 0),
      jobs = tonumber(known[3] or 0), batch_tokens = tonumber(known[4] or 0) }
    rates[owner] = rate
  end
  return rate
end

local function keep_rates()
  for owner, rate in pairs(rates) do
    if rate.changed then
      local key = rate_key(owner)
      redis.call('HSET', key, 'requests_at', string.format('%.3f', rate.requests_at), 'tokens_at',
        string.format('%.3f', rate.tokens_at), 'jobs', int(rate.jobs), 'batch_tokens', int(rate.batch_tokens))
      if rate.jobs > 0 or rate.batch_tokens > 0 then
        redis.call('PERSIST', key)
      else
        local back_s = math.max(rate.requests_at, rate.tokens_at) / 1000 - redis.call('TIME')[1]
        redis.call('EXPIRE', key, int(math.ceil(UNUSED_S + math.max(0, back_s))))
      end
    end
  end
end

local function write_gathered()
  keep_rates()
  for _, words in pairs(gathered) do
    if words[words.from] then run_gathered(words) end
  end
end

-- One token is enough to wake a scheduler: it looks at everything when it wakes. Scripts do this for
-- many jobs at once, so what needs no doing twice in one is remembered.
local woken, lined = false, {}
local function wake()
  if woken then return end
  woken = true
  if redis.call('LLEN', P .. 'wake') == 0 then redis.call('LPUSH', P .. 'wake', '1') end
end

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

local function line_up(id, lane, due)
  gather('ZADD', P .. 'lane:' .. lane, due, id)
  if not lined[lane] then
    lined[lane] = true
    redis.call('SADD', P .. 'lanes', lane)
  end
  wake()
end

-- Takes the job out of every index that its state put it in.
local function leave(id, j)
  if j.state == 'queued' then
    redis.call('ZREM', P .. 'lane:' .. j.lane, id)
    redis.call('ZREM', P .. 'taken', id)
    redis.call('ZREM', P .. 'delayed', id)
    if j.dlq then redis.call('ZREM', P .. 'dlq:' .. j.dlq, id) end
  elseif j.state == 'dispatched' or j.state == 'running' then
    gather('SREM', P .. 'busy:' .. j.deployment, id)
    if j.state == 'running' then
      gather('SREM', P .. 'held:' .. j.worker, id)
      if j.cancel then redis.call('HDEL', P .. 'abort:' .. j.worker, id) end
    else
      redis.call('ZREM', P .. 'dispatched', id)
    end
    if not woken and redis.call('EXISTS', P .. 'lanes') == 1 then wake() end
  end
end

local function quoted(value) return value and '"' .. value .. '"' or 'null' end
local function raw(value) return (value and value ~= '') and value or 'null' end

-- The attempt that the record describes now, as one JSON object. `more`: further fields, with a comma in front.
local function attempt_json(j, outcome, at, error, more)
  return '{"number":' .. j.attempt .. ',"deployment":' .. quoted(j.deployment) .. ',"tier":' .. quoted(j.tier)
    .. ',"worker":' .. quoted(j.worker) .. ',"outcome":"' .. outcome .. '","dispatched_ms":' .. raw(j.dispatched_at)
    .. ',"claimed_ms":' .. raw(j.claimed_at) .. ',"ended_ms":' .. int(at) .. ',"error":' .. raw(error)
    .. (more or '') .. '}'
end

local FIELDS = { 'state', 'attempt', 'lane', 'due', 'deployment', 'tier', 'worker', 'quiet', 'watchers',
  'accepted_at', 'dispatched_at', 'claimed_at', 'first_token_at', 'cancel', 'cancel_error', 'deaths', 'deadline', 'tenant', 'stream',
  'spec', 'history', 'left', 'dlq', 'placeholders', 'charges', 'limits', 'hedge', 'hedge_of' }

-- What `finish` needs of a running job. Each field read costs, and most jobs end without a detour.
local ENDING = { 'state', 'attempt', 'deployment', 'tier', 'worker', 'quiet', 'watchers', 'accepted_at',
  'dispatched_at', 'claimed_at', 'cancel', 'deadline', 'spec', 'history', 'placeholders', 'charges', 'limits', 'hedge', 'hedge_of' }

-- The record's bookkeeping as a table, or nil when there is no such job.
local function load(id, names)
  names = names or FIELDS
  local values = redis.call('HMGET', job_key(id), unpack(names))
  if not values[1] then return nil end
  local j = {}
  for i, name in ipairs(names) do j[name] = values[i] or nil end
  return j
end

-- Keeps the mean time from dispatch to end of a deployment's jobs, the newest counting most. With the
-- number of jobs it holds at once this is its throughput (Little's law): that is what an ETA is made of.
local paces = {}
local function note_pace(j, at)
  if not j.dispatched_at then return end
  local s = (at - tonumber(j.dispatched_at)) / 1000
  local mean = paces[j.deployment] or tonumber(redis.call('HGET', P .. 'pace', j.deployment) or s)
  paces[j.deployment] = mean + PACE_WEIGHT * (s - mean)
end

local function keep_paces()
  for deployment, mean in pairs(paces) do
    redis.call('HSET', P .. 'pace', deployment, string.format('%.4f', mean))
  end
end

-- What succeeded jobs teach of the next ones: per endpoint and deployment how quick it is, per endpoint and
-- model how long its answers get. Two calls for all the jobs of a script, however many they are.
-- Of jobs that end together at one place a few teach as much as all: each weighs a tenth of what is known.
local EXPERIENCE = P .. 'experience'
local LESSONS_MOST = 8
local lessons, learned, taught = {}, false, {}

-- A mean of `n` values, the newest included: of the first ones plain, then the newest count most.
local function toward(mean, value, n) return mean + math.max(PACE_WEIGHT, 1 / n) * (value - mean) end

-- How long answers get: of each length up to 1, 2, 3, 4, 6, 8, 12, ... tokens how many ended by themselves, and how many
-- were cut by their limit (LENGTH_BOUNDS in fabric/contracts/experience.py). Halved when they are many: the newest count most.
local LENGTHS, LENGTHS_MOST = 33, 400

local function note_length(length, tokens, cut)
  local at, bound = 1, 1
  while bound < tokens and at < LENGTHS do
    at = at + 1
    bound = at % 2 == 0 and 2 ^ (at / 2) or 3 * 2 ^ ((at - 3) / 2)
  end
  local counted = cut and length.cut or length.ended
  counted[at] = counted[at] + 1
  length.counted = length.counted + 1
  if length.counted <= LENGTHS_MOST then return end
  length.counted = length.counted / 2
  for i = 1, LENGTHS do length.ended[i], length.cut[i] = length.ended[i] / 2, length.cut[i] / 2 end
end

local function zeros()
  local t = {}
  for i = 1, LENGTHS do t[i] = 0 end
  return t
end

local function lesson_of(pace, length)
  if not lessons[pace] or not lessons[length] then
    local known = redis.call('HMGET', EXPERIENCE, pace, length)
    lessons[pace] = lessons[pace] or (known[1] and cjson.decode(known[1]))
      or { n = 0, at = 0, engine_s = 0, token_s = 0, first_n = 0, x = 0, y = 0, xx = 0, xy = 0, queue_s = 0, end_s = 0 }
    lessons[length] = lessons[length] or (known[2] and cjson.decode(known[2]))
      or { n = 0, at = 0, tokens = 0, counted = 0, ended = zeros(), cut = zeros() }
    -- Of a version that knew less.
    lessons[pace].queue_s, lessons[pace].end_s = lessons[pace].queue_s or 0, lessons[pace].end_s or 0
    if not lessons[length].ended then
      lessons[length].counted, lessons[length].ended, lessons[length].cut = 0, zeros(), zeros()
    end
  end
  return lessons[pace], lessons[length]
end

local function learn(j, measures, at)
  taught[j.deployment] = (taught[j.deployment] or 0) + 1
  if taught[j.deployment] > LESSONS_MOST then return end
  local endpoint, model = string.match(j.spec, '^{"id":"[^"]*","endpoint":"([^"]*)","model":"([^"]*)"')
  local m = cjson.decode(measures)
  local prompt = tonumber(string.match(j.spec, '"prompt_tokens":(%d+)') or 0)
  local engine, tokens, first = tonumber(m.engine_s), tonumber(m.usage.output_tokens), tonumber(m.first_token_s)
  if not endpoint or not engine or engine <= 0 then return end
  local pace, length = lesson_of('pace ' .. endpoint .. ' ' .. j.deployment, 'length ' .. endpoint .. ' ' .. model)
  pace.n, pace.at = pace.n + 1, at
  pace.engine_s = toward(pace.engine_s, engine, pace.n)
  -- On the store's clock, but for what the worker waited and worked: what goes by on the way there and back.
  local claimed = tonumber(j.claimed_at)
  pace.queue_s = toward(pace.queue_s, (claimed - tonumber(j.dispatched_at)) / 1000, pace.n)
  pace.end_s = toward(pace.end_s, math.max(0, (at - claimed) / 1000 - tonumber(m.gate_s) - engine), pace.n)
  if tokens > 0 then
    local answer = tokens / tonumber(string.match(j.spec, '"answers":(%d+)') or 1)
    local limit = tonumber(string.match(j.spec, '"max_output_tokens":(%d+)'))
    length.n, length.at = length.n + 1, at
    length.tokens = toward(length.tokens, answer, length.n)
    note_length(length, answer, limit and answer >= limit)
    pace.token_s = toward(pace.token_s, math.max(0, engine - (first or 0)) / tokens, pace.n)
  else
    first = first or engine -- embeddings: all of it goes by the prompt
  end
  if first then
    local n = pace.first_n + 1
    pace.first_n = n
    pace.x, pace.y = toward(pace.x, prompt, n), toward(pace.y, first, n)
    pace.xx, pace.xy = toward(pace.xx, prompt * prompt, n), toward(pace.xy, prompt * first, n)
  end
  learned = true
end

local function keep_experience()
  if not learned then return end
  local fields = {}
  for name, lesson in pairs(lessons) do
    if lesson.n > 0 then
      fields[#fields + 1] = name
      fields[#fields + 1] = cjson.encode(lesson)
    end
  end
  redis.call('HSET', EXPERIENCE, unpack(fields))
end

-- Adds pairs (name, amount) of ARGV, from one on, to what is counted for good and in this minute.
local function count(from, minute_s)
  local minute = P .. 'minute:' .. int(math.floor(now_ms() / 60000))
  for i = from, #ARGV, 2 do
    redis.call('HINCRBYFLOAT', P .. 'totals', ARGV[i], ARGV[i + 1])
    redis.call('HINCRBYFLOAT', minute, ARGV[i], ARGV[i + 1])
  end
  if from < #ARGV then redis.call('EXPIRE', minute, minute_s) end
end

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

-- Of a breaker that isn't closed: 'open', 'half_open', or 'probing' while its one job is there. Nil for others.
local function breaker_state(h, deployment, at)
  if not h or h.open_until == 0 then return nil end
  if at < h.open_until then return 'open' end
  if h.probe and redis.call('SISMEMBER', P .. 'busy:' .. deployment, h.probe) == 1 then return 'probing' end
  return 'half_open'
end

-- An attempt's fields that are worth keeping beside its error: what it measured, and the decision that sent it there.
local function more_json(measures, decision)
  return ((measures and measures ~= '') and ',"measures":' .. measures or '')
    .. ((decision and decision ~= '') and ',"decision":' .. decision or '')
end

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

-- What a job takes of rate limits. `limits`: per owner a line 'OWNER', four limits ('-' for none), four amounts.
local LIMITED = '(%S+) (%S+) (%S+) (%S+) (%S+) (%d+) (%d+) (%d+) (%d+)'
-- Of jobs that are under way nobody knows when the next one ends.
local ENDS_MS = 1000

-- ms until `amount` is there of what a minute gives; none or less: it is.
local function wait_for(back_at, limit, amount, at)
  return math.max(back_at, at) + amount * MINUTE_MS / limit - at - MINUTE_MS
end

-- Nil, or what holds the job up the longest: 'OWNER KIND LIMIT MS'.
local function limited(limits, at)
  local longest, said = -1, nil
  local function look(owner, kind, limit, ms)
    if ms > longest then longest, said = ms, owner .. ' ' .. kind .. ' ' .. limit .. ' ' .. int(math.ceil(ms)) end
  end
  for owner, requests, tokens, jobs, enqueued, _, asked, _, queued in string.gmatch(limits, LIMITED) do
    local rate = rate_of(owner)
    local ms = requests ~= '-' and wait_for(rate.requests_at, requests, 1, at) or 0
    if ms > 0 then look(owner, 'requests', requests, ms) end
    ms = tokens ~= '-' and wait_for(rate.tokens_at, tokens, asked, at) or 0
    if ms > 0 then look(owner, 'tokens', tokens, ms) end
    if jobs ~= '-' and rate.jobs + 1 > tonumber(jobs) then look(owner, 'concurrent', jobs, ENDS_MS) end
    if enqueued ~= '-' and rate.batch_tokens + queued > tonumber(enqueued) then
      look(owner, 'batch_tokens', enqueued, ENDS_MS)
    end
  end
  return said
end

-- Takes it; answers what the job's record keeps for its end: lines 'OWNER TOKENS_LIMIT TOKENS JOBS BATCH_TOKENS BACK_AT'.
local function take_of(limits, at)
  local kept = {}
  for owner, requests, tokens, _, _, one, asked, job, queued in string.gmatch(limits, LIMITED) do
    local rate = rate_of(owner)
    if requests ~= '-' then rate.requests_at = math.max(rate.requests_at, at) + one * MINUTE_MS / requests end
    if tokens ~= '-' then rate.tokens_at = math.max(rate.tokens_at, at) + asked * MINUTE_MS / tokens end
    rate.jobs, rate.batch_tokens, rate.changed = rate.jobs + job, rate.batch_tokens + queued, true
    kept[#kept + 1] = owner .. ' ' .. tokens .. ' ' .. asked .. ' ' .. job .. ' ' .. queued .. ' ' .. int(rate.tokens_at)
  end
  return table.concat(kept, '\n')
end

-- What is left of the tightest: 'LIMIT REMAINING MS' of requests and of tokens, '- - -' where there is no limit.
local function levels_of(limits, at)
  local tightest = {}
  local function look(kind, limit, back_at)
    if limit == '-' then return end
    local back_ms = math.max(0, back_at - at)
    local remaining = math.max(0, math.floor((MINUTE_MS - back_ms) * limit / MINUTE_MS + 0.001))
    if not tightest[kind] or remaining < tightest[kind][2] then tightest[kind] = { limit, remaining, back_ms } end
  end
  for owner, requests, tokens in string.gmatch(limits, LIMITED) do
    look('requests', requests, rate_of(owner).requests_at)
    look('tokens', tokens, rate_of(owner).tokens_at)
  end
  local function told(kind)
    local t = tightest[kind]
    return t and t[1] .. ' ' .. int(t[2]) .. ' ' .. int(math.ceil(t[3])) or '- - -'
  end
  return told('requests') .. ' ' .. told('tokens')
end

local TAKEN = '(%S+) (%S+) (%d+) (%d+) (%d+) (%d+)'

-- At a job's end: its place is free, and the tokens that it used stand in for those that were estimated. What has come
-- back of the estimate by itself can't be given back again.
local function give_back(id, j, measures, at)
  local used, before = nil, 0
  for owner, limit, asked, job, queued, back_at in string.gmatch(j.limits, TAKEN) do
    local rate = rate_of(owner)
    rate.jobs, rate.batch_tokens, rate.changed = math.max(0, rate.jobs - job), math.max(0, rate.batch_tokens - queued), true
    if limit ~= '-' then
      if not used then
        used, before = tokens_used(j, measures), tonumber(redis.call('HGET', job_key(id), 'metered') or 0)
      end
      local more_ms = (used - before - asked) * MINUTE_MS / limit
      if more_ms > 0 then
        rate.tokens_at = math.max(rate.tokens_at, at) + more_ms
      else
        rate.tokens_at = rate.tokens_at - math.min(-more_ms, math.max(0, back_at - at))
      end
    end
  end
  if used then redis.call('HSET', job_key(id), 'metered', int(math.max(before, used))) end
end

-- A parked job comes back: it is under way again, whatever the limits say. Answers what its record keeps now.
local function take_again(taken, at)
  local kept = {}
  for owner, limit, asked, job, queued in string.gmatch(taken, TAKEN) do
    local rate = rate_of(owner)
    rate.jobs, rate.batch_tokens, rate.changed = rate.jobs + job, rate.batch_tokens + queued, true
    if limit ~= '-' then rate.tokens_at = math.max(rate.tokens_at, at) + asked * MINUTE_MS / limit end
    kept[#kept + 1] = owner .. ' ' .. limit .. ' ' .. asked .. ' ' .. job .. ' ' .. queued .. ' ' .. int(rate.tokens_at)
  end
  return table.concat(kept, '\n')
end

local remember, move_on, stop, take_over, call_off -- below

-- The end of a job: one state, one completion entry, one event. `o`: result, error, measures (JSON
-- or ''), ttl (seconds that the record stays readable).
local function finish(id, j, state, o)
  if j.hedge_of and state == 'succeeded' and take_over(id, j, o) then return end
  local now = now_ms()
  local at, key, quiet = int(now), job_key(id), j.quiet == '1'
  local error, measures = o.error or '', o.measures or ''
  if j.hedge then call_off(j.hedge, o.ttl) end
  if j.left then measures = redis.call('HGET', key, 'left_measures') or measures end
  leave(id, j)
  if state == 'succeeded' then
    note_pace(j, now)
    -- Measures that can't be read teach nothing: they must not stop an outcome half way.
    if measures ~= '' then pcall(learn, j, measures, now) end
  end
  if j.charges then settle(id, j, measures) end
  if j.limits then give_back(id, j, measures, now) end
  if j.deadline then gather('ZREM', P .. 'deadlines', id) end
  gather('ZREM', P .. 'live', id)
  redis.call('HSET', key, 'state', state, 'finished_at', at, 'error', error, 'measures', measures)
  if j.cancel then redis.call('HDEL', key, 'cancel', 'cancel_error') end
  if j.left then redis.call('HDEL', key, 'left', 'left_at', 'left_error', 'left_measures', 'left_cost', 'dlq') end
  if not quiet and o.result and o.result ~= '' then redis.call('HSET', key, 'result', o.result) end
  local fields = { 'spec', j.spec, 'state', state, 'attempt', j.attempt,
    'deployment', j.deployment or '', 'tier', j.tier or '', 'worker', j.worker or '',
    'accepted_ms', j.accepted_at, 'dispatched_ms', j.dispatched_at or '', 'claimed_ms', j.claimed_at or '',
    'finished_ms', at, 'measures', measures, 'error', error }
  if quiet and o.result then
    fields[#fields + 1] = 'result'
    fields[#fields + 1] = o.result
    if j.placeholders then
      fields[#fields + 1] = 'placeholders'
      fields[#fields + 1] = j.placeholders
    end
  end
  if j.history then
    fields[#fields + 1] = 'attempts'
    fields[#fields + 1] = '[' .. j.history .. ']'
  end
  redis.call('XADD', COMPLETIONS, '*', unpack(fields))
  if not quiet then
    event(id, j.quiet, j.watchers, '{"type":"' .. state .. '","at":' .. at .. ',"attempt":'
      .. attempt_json(j, state, now, error) .. ',"accepted_ms":' .. j.accepted_at .. ',"measures":' .. raw(measures)
      .. (j.history and ',"spent_usd":' .. (redis.call('HGET', key, 'spent') or '0') or '') .. '}', o.result or '')
  end
  if state == 'dead' then
    redis.call('ZADD', P .. 'dead', at, id)
  else
    gather_deletion(P .. 'payload:' .. id)
    redis.call('EXPIRE', key, o.ttl)
    if not quiet then redis.call('EXPIRE', P .. 'events:' .. id, o.ttl) end
  end
end

-- Adds an attempt to the job's history. A job that goes round for hours (its broker is away) keeps the newest.
function remember(id, entry)
  local key = job_key(id)
  local history = redis.call('HGET', key, 'history')
  history = history and (history .. ',' .. entry) or entry
  while #history > HISTORY_BYTES do
    local second = string.find(history, ',{"number":', 1, true)
    if not second then break end
    history = string.sub(history, second + 1)
  end
  redis.call('HSET', key, 'history', history)
end

-- Tells a running job's worker to stop it; what the job ends with if the worker can't is kept with it.
function stop(id, worker, why, error)
  redis.call('HSET', job_key(id), 'cancel', why, 'cancel_error', error)
  redis.call('HSET', P .. 'abort:' .. worker, id, why)
  redis.call('PUBLISH', P .. 'worker:' .. worker, id .. '\n' .. why)
end

-- Back to the backlog after an attempt that ended without an outcome. A stream that has already
-- spoken can't start again in a second voice: it ends with `broken` instead.
local function requeue(id, j, o)
  local at = now_ms()
  if j.cancel then
    finish(id, j, j.cancel, { error = j.cancel_error, measures = o.measures, ttl = o.ttl })
    return 'ended'
  end
  if j.first_token_at then
    finish(id, j, 'failed', { error = o.broken, measures = o.measures, ttl = o.ttl })
    return 'ended'
  end
  leave(id, j)
  local key = job_key(id)
  local entry = attempt_json(j, 'requeued', at, o.error)
  remember(id, attempt_json(j, 'requeued', at, o.error, more_json(o.measures, redis.call('HGET', key, 'decision'))))
  redis.call('HSET', key, 'state', 'queued')
  if o.cost and o.cost ~= '0' then redis.call('HINCRBYFLOAT', key, 'spent', o.cost) end
  redis.call('HDEL', key, 'worker', 'claimed_at', 'dispatched_at', 'deployment', 'tier')
  event(id, j.quiet, j.watchers, '{"type":"requeued","at":' .. int(at) .. ',"attempt":' .. entry .. '}')
  if o.delay_ms and o.delay_ms > 0 then
    redis.call('ZADD', P .. 'delayed', int(at + o.delay_ms), id)
  else
    line_up(id, j.lane, j.due)
  end
  return 'queued'
end

-- To the dead-letter queue of its tier after an attempt that leaves it no further try at its deployment: the
-- scheduler looks for its next place. Until then the record goes on describing that attempt.
-- `o`: error, its code, measures, cost (US dollars), broken, ttl
local function set_down(id, j, o)
  local at = now_ms()
  if j.cancel then
    finish(id, j, j.cancel, { error = j.cancel_error, measures = o.measures, ttl = o.ttl })
    return 'ended'
  end
  if j.first_token_at then
    finish(id, j, 'failed', { error = o.broken, measures = o.measures, ttl = o.ttl })
    return 'ended'
  end
  leave(id, j)
  local key = job_key(id)
  local exhausted = redis.call('HGET', key, 'exhausted')
  local gone = j.deployment .. ' ' .. o.code
  redis.call('HSET', key, 'state', 'queued', 'exhausted', exhausted and (exhausted .. ',' .. gone) or gone,
    'left', o.code, 'left_at', int(at), 'left_error', o.error, 'left_measures', o.measures,
    'left_cost', o.cost, 'dlq', j.tier)
  event(id, j.quiet, j.watchers, '{"type":"requeued","at":' .. int(at) .. ',"attempt":'
    .. attempt_json(j, 'exhausted', at, o.error) .. '}')
  redis.call('ZADD', P .. 'dlq:' .. j.tier, int(at), id)
  redis.call('SADD', P .. 'dlqs', j.tier)
  wake()
  return 'moving'
end

-- What `set_down` has left in the record goes into the history: the job gets a new attempt.
function move_on(id, j)
  local key = job_key(id)
  local left = redis.call('HMGET', key, 'left_at', 'left_error', 'left_measures', 'decision', 'left_cost')
  remember(id, attempt_json(j, 'exhausted', left[1], left[2], more_json(left[3], left[4])))
  if left[5] ~= '0' then redis.call('HINCRBYFLOAT', key, 'spent', left[5]) end
  redis.call('HDEL', key, 'left', 'left_at', 'left_error', 'left_measures', 'left_cost', 'dlq', 'worker', 'claimed_at')
end

-- Hedges: a job that takes too long at one place gets a second try at another one, a job of its own (`hedge_of`). If
-- that one succeeds before the first job has said anything, its answer becomes the first job's next attempt, and
-- the try that it outran is stopped. Otherwise it is stopped itself when the first job ends.
local OUTRUN = 'outrun'

function take_over(id, j, o)
  local first, key = j.hedge_of, job_key(j.hedge_of)
  local f = load(first)
  if not f or f.hedge ~= id or f.cancel or f.first_token_at then return false end
  if f.state ~= 'running' and f.state ~= 'dispatched' and f.state ~= 'queued' then return false end
  local at = now_ms()
  leave(first, f)
  if f.left then
    move_on(first, f)
  elseif f.state ~= 'queued' then
    remember(first, attempt_json(f, 'outrun', at, nil, more_json(nil, redis.call('HGET', key, 'decision'))))
  end
  if f.state == 'running' then
    redis.call('HSET', key, OUTRUN, f.attempt .. '\n' .. f.deployment .. '\n' .. f.tier .. '\n' .. f.worker .. '\n'
      .. f.dispatched_at .. '\n' .. f.claimed_at)
    redis.call('HSET', P .. 'abort:' .. f.worker, first, 'outrun')
    redis.call('PUBLISH', P .. 'worker:' .. f.worker, first .. '\noutrun')
  end
  leave(id, j)
  if j.charges and f.state == 'running' then
    -- Its reservation stays for what the try that was outrun has taken, until that is known.
    redis.call('HSET', key, 'outrun_charges', j.charges)
    redis.call('ZADD', P .. 'outrun', int(at), first)
  elseif j.charges then
    pay(j.charges, 0, 0)
  end
  if j.deadline then gather('ZREM', P .. 'deadlines', id) end
  gather('ZREM', P .. 'live', id)
  for _, name in ipairs({ 'deployment', 'tier', 'worker', 'dispatched_at', 'claimed_at' }) do f[name] = j[name] end
  f.attempt, f.state, f.left, f.hedge, f.history = int(f.attempt + 1), 'outrun', nil, nil, redis.call('HGET', key, 'history') or nil
  redis.call('HSET', key, 'attempt', f.attempt, 'deployment', j.deployment, 'tier', j.tier, 'worker', j.worker,
    'dispatched_at', j.dispatched_at, 'claimed_at', j.claimed_at, 'decision', redis.call('HGET', job_key(id), 'decision') or '')
  redis.call('HDEL', key, 'hedge')
  gather_deletion(job_key(id))
  gather_deletion(P .. 'payload:' .. id)
  redis.call('HINCRBY', P .. 'hedges', 'won', 1)
  finish(first, f, 'succeeded', { result = o.result, measures = o.measures, ttl = o.ttl })
  return true
end

-- The first job has ended: its hedge isn't needed any more.
function call_off(id, ttl)
  local j = load(id)
  if not j then return end
  local error = '{"message":"The first try was quicker.","code":"outrun","type":"server_error","status":500,"fault":"fabric"}'
  if j.state == 'queued' or j.state == 'dispatched' then
    finish(id, j, 'cancelled', { error = error, ttl = ttl })
  elseif j.state == 'running' and not j.cancel then
    stop(id, j.worker, 'cancelled', error)
  end
end

-- `cost`, `tokens`: of the try that was outrun; in billionths of a US dollar.
local function settle_outrun(id, cost, tokens)
  redis.call('ZREM', P .. 'outrun', id)
  local charges = redis.call('HGET', job_key(id), 'outrun_charges')
  if not charges then return end
  redis.call('HDEL', job_key(id), 'outrun_charges')
  pay(charges, cost, tokens)
end

-- What the try that was outrun had taken, once its worker says so: one more completion, with its number below zero.
local function bill_outrun(id, attempt, measures)
  local record = redis.call('HMGET', job_key(id), OUTRUN, 'spec', 'accepted_at')
  if not record[1] then return false end
  local number, deployment, tier, worker, dispatched, claimed =
    string.match(record[1], '^(%d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)$')
  if number ~= attempt then return false end
  redis.call('HDEL', job_key(id), OUTRUN)
  redis.call('HDEL', P .. 'abort:' .. worker, id)
  local readable, used = pcall(cjson.decode, measures)
  readable = readable and type(used) == 'table'
  settle_outrun(id, readable and billed(used) or 0, tokens_used({}, readable and measures or ''))
  if measures ~= '' then
    redis.call('XADD', COMPLETIONS, '*', 'spec', record[2], 'state', 'requeued', 'attempt', '-' .. attempt,
      'deployment', deployment, 'tier', tier, 'worker', worker, 'accepted_ms', record[3], 'dispatched_ms', dispatched,
      'claimed_ms', claimed, 'finished_ms', int(now_ms()), 'measures', measures, 'error', '')
  end
  return true
end
