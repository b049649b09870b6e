-- What jobs that succeed teach of the next ones.

local PACE_WEIGHT = 0.1

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
at_end[#at_end + 1] = keep_paces

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
at_end[#at_end + 1] = keep_experience
