-- A job enters: its record, payload, place in the backlog and idempotency key, all or nothing.
-- ARGV: limit of live jobs, seconds an idempotency key lives, then per job:
--   id, lane, due horizon (ms), deadline (ms or ''), quiet ('1' or ''), stream ('1' or ''), tenant,
--   watcher, idempotency key, fingerprint, spec, payload, placeholders ('' where the payload has none),
--   label that keeps it away from a deployment ('' where none does), what to reserve of budgets ('' where none count),
--   what to take of rate limits ('' where there are none)
-- Returns per job {'accepted' | 'exists' | 'conflict' | 'full', id}, {'over' | 'unready', 'BUDGET END'} or
--   {'limited', 'OWNER KIND LIMIT MS'}, each with what is left of rate limits ('' where there are none).
-- needs: events, backlog, budgets, limits
local at = now_ms()
local limit, idempotency_s = tonumber(ARGV[1]), ARGV[2]
local live = redis.call('ZCARD', P .. 'live')
local answers = {}
local blocks = {}
for i = 3, #ARGV, 16 do
  local id, lane, horizon, deadline, quiet, stream = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local tenant, watcher, idem, fingerprint, spec, payload = ARGV[i + 6], ARGV[i + 7], ARGV[i + 8], ARGV[i + 9], ARGV[i + 10], ARGV[i + 11]
  local placeholders, blocked, charges, limits = ARGV[i + 12], ARGV[i + 13], ARGV[i + 14], ARGV[i + 15]
  local verdict, known = 'accepted', id
  -- With its length in front no tenant's name can be read as another's plus the start of a key.
  local idem_key = P .. 'idempotency:' .. #tenant .. ':' .. tenant .. ':' .. idem
  if idem ~= '' then
    local earlier = redis.call('GET', idem_key)
    if earlier then
      local split = string.find(earlier, ' ', 1, true)
      known = string.sub(earlier, 1, split - 1)
      verdict = string.sub(earlier, split + 1) == fingerprint and 'exists' or 'conflict'
    end
  end
  if verdict == 'accepted' and redis.call('EXISTS', job_key(id)) == 1 then verdict = 'exists' end
  if verdict == 'accepted' and live >= limit then verdict = 'full' end
  if verdict == 'accepted' and limits ~= '' then
    local refusal = limited(limits, at)
    if refusal then verdict, known = 'limited', refusal end
  end
  if verdict == 'accepted' and charges ~= '' then
    local refusal, budget, ends = reserve(charges)
    if refusal then verdict, known = refusal, budget .. ' ' .. ends end
  end
  if verdict == 'accepted' then
    live = live + 1
    local due = at + tonumber(horizon)
    if deadline ~= '' and tonumber(deadline) < due then due = tonumber(deadline) end
    local fields = { 'spec', spec, 'state', 'queued', 'attempt', '0', 'lane', lane, 'due', int(due),
      'accepted_at', int(at), 'tenant', tenant }
    if deadline ~= '' then
      fields[#fields + 1] = 'deadline'
      fields[#fields + 1] = deadline
      gather('ZADD', P .. 'deadlines', deadline, id)
    end
    if stream ~= '' then
      fields[#fields + 1] = 'stream'
      fields[#fields + 1] = '1'
    end
    if watcher ~= '' then
      fields[#fields + 1] = 'watchers'
      fields[#fields + 1] = watcher
    end
    if quiet ~= '' then
      fields[#fields + 1] = 'quiet'
      fields[#fields + 1] = '1'
    else
      gather('ZADD', P .. 'jobs:' .. tenant, int(at), id)
    end
    if placeholders ~= '' then
      fields[#fields + 1] = 'placeholders'
      fields[#fields + 1] = placeholders
    end
    if charges ~= '' then
      fields[#fields + 1] = 'charges'
      fields[#fields + 1] = charges
    end
    if limits ~= '' then
      fields[#fields + 1] = 'limits'
      fields[#fields + 1] = take_of(limits, at)
    end
    if blocked ~= '' then blocks[blocked] = (blocks[blocked] or 0) + 1 end
    redis.call('HSET', job_key(id), unpack(fields))
    redis.call('SET', P .. 'payload:' .. id, payload)
    gather('ZADD', P .. 'live', int(at), id)
    if idem ~= '' then
      redis.call('SET', idem_key, id .. ' ' .. fingerprint, 'EX', idempotency_s)
    end
    event(id, quiet, nil, '{"type":"queued","at":' .. int(at) .. '}')
    line_up(id, lane, int(due))
  end
  answers[#answers + 1] = { verdict, known, limits ~= '' and levels_of(limits, at) or '' }
end
for label, count in pairs(blocks) do redis.call('HINCRBY', P .. 'label_blocks', label, count) end
return answers
