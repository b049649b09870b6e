-- In which provider batches jobs are.
-- ARGV: deployment, ids. Returns per job what is known of its group (JSON), or ''.
local key, groups, answers = P .. 'provider:' .. ARGV[1], {}, {}
for i = 2, #ARGV do
  local group = redis.call('HGET', key, 'job ' .. ARGV[i])
  if group and not groups[group] then groups[group] = redis.call('HGET', key, 'group ' .. group) or '' end
  answers[#answers + 1] = group and groups[group] or ''
end
return answers
