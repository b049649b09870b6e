-- needs: budgets

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
at_end[#at_end + 1] = keep_rates

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
