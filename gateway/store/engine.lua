-- All that the gateways ask of the engine in one step. See `Store` in base.py for what it means.
--
-- KEYS[1]  the prefix of every key; in braces, a cluster keeps them all in one place
-- ARGV     the operation, the gateway that asks, and what the operation takes
--
-- <prefix>:gws              set    ids of gateways; those that are dead are removed on the way
-- <prefix>:gw:<id>          string alive while it is there; the life of the gateway's inbox
-- <prefix>:in:<id>:<life>   stream the inbox; `…:bytes` is what waits in it
-- <prefix>:born             string random; another one when the engine has lost its memory
-- <prefix>:claim:<name>     hash   holder, fence, facts, ended
-- <prefix>:doc:<name>       string a document (plain commands)
-- <prefix>:table:<name>     hash   life, version, floor; `…:rows` hash, `…:changed` and `…:gone`
--                                  zsets of keys by the version that wrote or deleted them
-- <prefix>:story:<name>     list   chunks of lines, each after the number of its last line
-- <prefix>:stories:told     zset   names of stories by when they were told last, in microseconds
-- <prefix>:stories:kept     hash   of each the number of its last line, what its chunks cost, and
--                                  what it costs in all; what all cost is `cost` of their table
-- <prefix>:bucket:<name>    string when it will be full, in microseconds

local GATEWAYS_MS = 3600 * 1000
local INBOX_MS = 60 * 1000
local BORN_MS = 24 * 3600 * 1000
local INBOX_BYTES = 32 * 1024 * 1024
local LETTER_BYTES = 256
local NEWS = 65536
local TOMBSTONES = 10000
local CHUNK_COST = 32
local STORY_COST = 1024
local DIGITS = 16
local CHUNKS_AT_ONCE = 32
local LET_GO_AT_ONCE = 64

local prefix, me = KEYS[1], ARGV[2]
local op = {}

local function key(kind, name) return prefix .. ':' .. kind .. ':' .. name end
local function whole(number) return string.format('%.0f', number) end

-- Presence

local function life_of(id) return redis.call('GET', key('gw', id)) end

local function living()
  local all, found = prefix .. ':gws', {}
  for _, id in ipairs(redis.call('SMEMBERS', all)) do
    local life = life_of(id)
    if life then
      found[#found + 1] = {id, life}
    else
      redis.call('SREM', all, id)
    end
  end
  return found
end

function op.gateways()
  local ids = {}
  for _, one in ipairs(living()) do ids[#ids + 1] = one[1] end
  return ids
end

-- Takes the marker that the gateway knows, one for an engine that has none, its inbox's life, and
-- for how long it is alive now. A gateway whose engine has another memory than it knew is not alive before it knows that.
function op.beat()
  local known, candidate, life, alive_ms = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local born = prefix .. ':born'
  redis.call('SET', born, candidate, 'NX', 'PX', BORN_MS)
  redis.call('PEXPIRE', born, BORN_MS)
  local marker = redis.call('GET', born)
  if known ~= '' and known ~= marker then return {0, marker} end
  local before = redis.call('SET', key('gw', me), life, 'PX', alive_ms, 'GET')
  redis.call('SADD', prefix .. ':gws', me)
  redis.call('PEXPIRE', prefix .. ':gws', GATEWAYS_MS)
  local inbox = key('in', me .. ':' .. life)
  redis.call('PEXPIRE', inbox, INBOX_MS)
  redis.call('PEXPIRE', inbox .. ':bytes', INBOX_MS)
  return {before and 1 or 0, marker}
end

function op.leave()
  local inbox = key('in', me .. ':' .. ARGV[3])
  redis.call('DEL', key('gw', me), inbox, inbox .. ':bytes')
  redis.call('SREM', prefix .. ':gws', me)
end

-- Mail

local function post(id, life, size, ...)
  local inbox = key('in', id .. ':' .. life)
  redis.call('XADD', inbox, 'MAXLEN', '~', NEWS, '*', ...)
  redis.call('INCRBY', inbox .. ':bytes', size + LETTER_BYTES)
  redis.call('PEXPIRE', inbox, INBOX_MS)
  redis.call('PEXPIRE', inbox .. ':bytes', INBOX_MS)
end

local function room(id, life, size)
  local used = redis.call('GET', key('in', id .. ':' .. life) .. ':bytes') or 0
  return tonumber(used) + size + LETTER_BYTES <= INBOX_BYTES
end

function op.send()
  local delivered, lives = {}, {}
  for i = 3, #ARGV, 2 do
    local to, letter = ARGV[i], ARGV[i + 1]
    if lives[to] == nil then lives[to] = life_of(to) end
    if lives[to] and not room(to, lives[to], #letter) then lives[to] = false end
    if lives[to] then post(to, lives[to], #letter, 'letter', letter) end
    delivered[#delivered + 1] = lives[to] and 1 or 0
  end
  return delivered
end

-- Takes the inbox, the id of the last letter that was read, how many those were, and their bytes.
function op.trim()
  local inbox, milliseconds, number = ARGV[3], string.match(ARGV[4], '(%d+)-(%d+)')
  redis.call('XTRIM', inbox, 'MINID', milliseconds .. '-' .. whole(number + 1))
  local account = inbox .. ':bytes'
  if redis.call('EXISTS', account) == 1 then
    redis.call('DECRBY', account, ARGV[5] * LETTER_BYTES + ARGV[6])
  end
end

-- Claims

local function read(name)
  local c = redis.call('HMGET', key('claim', name), 'holder', 'fence', 'facts', 'ended')
  if not c[2] then return nil end
  return {holder = c[1], fence = tonumber(c[2]), facts = c[3], ended = c[4]}
end

local function write(name, c, ttl_ms)
  local there = key('claim', name)
  redis.call('HSET', there,
    'holder', c.holder, 'fence', whole(c.fence), 'facts', c.facts, 'ended', c.ended)
  redis.call('PEXPIRE', there, ttl_ms)
end

local function alive(c) return c.holder ~= '' and (c.holder == me or life_of(c.holder)) end

local function show(c)
  return c and {c.holder, whole(c.fence), c.facts, alive(c) and 1 or 0, c.ended}
end

local function tell(name, c)
  for _, one in ipairs(living()) do
    local id, life = one[1], one[2]
    if id ~= me then
      post(id, life, 0, 'taken', name, 'fence', whole(c.fence), 'holder', c.holder)
    end
  end
end

local function mine(name, fence)
  local c = read(name)
  return c and c.holder == me and c.fence == tonumber(fence) and c
end

function op.find() return show(read(ARGV[3])) end

function op.claim()
  local name, facts, ttl_ms, over = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
  local there = read(name)
  if there and there.ended == '' and (alive(there) or there.fence ~= over) then
    return show(there)
  end
  local c = {holder = me, fence = there and there.fence + 1 or 1, facts = facts, ended = ''}
  write(name, c, ttl_ms)
  if there then tell(name, c) end
  return show(c)
end

function op.take()
  local name, fence, facts, ttl_ms = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
  local there = read(name)
  if there and (there.ended ~= '' or there.fence >= fence) then return show(there) end
  local c = {holder = me, fence = fence, facts = facts, ended = ''}
  write(name, c, ttl_ms)
  tell(name, c)
  return show(c)
end

function op.hold()
  local still = {}
  for i = 3, #ARGV, 4 do
    local name, fence, facts, ttl_ms = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
    local there = read(name)
    local ours = not there or (there.holder == me and there.fence <= fence)
    if ours then write(name, {holder = me, fence = fence, facts = facts, ended = ''}, ttl_ms) end
    still[#still + 1] = ours and 1 or 0
  end
  return still
end

function op.release()
  if not mine(ARGV[3], ARGV[4]) then return 0 end
  redis.call('HSET', key('claim', ARGV[3]), 'holder', '')
  return 1
end

function op.finish()
  local c = mine(ARGV[3], ARGV[4])
  if not c then return 0 end
  c.holder, c.ended = '', ARGV[5]
  write(ARGV[3], c, ARGV[6])
  return 1
end

-- Tables

local function head(name)
  local there = redis.call('HMGET', key('table', name), 'life', 'version', 'floor')
  return there[1] or '0', tonumber(there[2] or 0), tonumber(there[3] or 0)
end

function op.changes()
  local name, life, since = ARGV[3], ARGV[4], tonumber(ARGV[5])
  local there = key('table', name)
  local now_life, version, floor = head(name)
  if life ~= now_life or since < floor or since > version or life == '0' then
    return {now_life, whole(version), 1, redis.call('HGETALL', there .. ':rows'), {}}
  end
  local after, rows = '(' .. whole(since), {}
  for _, row in ipairs(redis.call('ZRANGEBYSCORE', there .. ':changed', after, '+inf')) do
    rows[#rows + 1] = row
    rows[#rows + 1] = redis.call('HGET', there .. ':rows', row)
  end
  local gone = redis.call('ZRANGEBYSCORE', there .. ':gone', after, '+inf')
  return {now_life, whole(version), 0, rows, gone}
end

local function next_version(name, new_life)
  local there, life, version = key('table', name), head(name)
  version = version + 1
  if life == '0' then
    life = new_life
    redis.call('UNLINK', there .. ':rows', there .. ':changed', there .. ':gone')
    redis.call('HSET', there, 'life', life, 'floor', version)
  end
  redis.call('HSET', there, 'version', whole(version))
  return life, version
end

local function write_row(there, version, row, value)
  redis.call('HSET', there .. ':rows', row, value)
  redis.call('ZADD', there .. ':changed', version, row)
  redis.call('ZREM', there .. ':gone', row)
end

local function delete_row(there, version, row)
  if redis.call('HDEL', there .. ':rows', row) == 1 then
    redis.call('ZREM', there .. ':changed', row)
    redis.call('ZADD', there .. ':gone', version, row)
  end
end

local function forget_deletions(there)
  local many = redis.call('ZCARD', there .. ':gone') - TOMBSTONES
  if many <= 0 then return end
  local newest = redis.call('ZRANGE', there .. ':gone', many - 1, many - 1, 'WITHSCORES')
  redis.call('HSET', there, 'floor', newest[2])
  redis.call('ZREMRANGEBYRANK', there .. ':gone', 0, many - 1)
end

local function last_for(there, ttl_ms)
  for _, part in ipairs({'', ':rows', ':changed', ':gone'}) do
    redis.call('PEXPIRE', there .. part, ttl_ms)
  end
end

-- Takes the table, life and version it must be at, the life of a new one, its TTL, how many rows
-- follow with their values, and then those to delete.
function op.commit()
  local name, life, since, new_life, ttl_ms = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  local there, last = key('table', name), 8 + 2 * tonumber(ARGV[8])
  local now_life, version = head(name)
  if life ~= now_life or tonumber(since) ~= version then return false end
  if #ARGV > 8 then now_life, version = next_version(name, new_life) end
  for i = 9, last, 2 do write_row(there, version, ARGV[i], ARGV[i + 1]) end
  for i = last + 1, #ARGV do delete_row(there, version, ARGV[i]) end
  forget_deletions(there)
  last_for(there, ttl_ms)
  return {now_life, whole(version)}
end

-- Stories

local told, kept = prefix .. ':stories:told', prefix .. ':stories:kept'

-- What the stories cost together, while some are added to.
local all = {}

local function figures(name)
  local last, chunks, cost = string.match(redis.call('HGET', kept, name) or '', '(%d+) (%d+) (%d+)')
  return tonumber(last), tonumber(chunks), tonumber(cost) or 0
end

-- What an engine that evicts has kept of it is no good without the rest. Its clock may be behind the
-- one of another engine; the order in which stories were told is kept all the same.
local function begin_to_tell(heads, new_life)
  if head(heads) == '0' or redis.call('EXISTS', told) ~= redis.call('EXISTS', kept) then
    redis.call('UNLINK', told, kept, key('table', heads))
  end
  local _, version = next_version(heads, new_life)
  local cost = tonumber(redis.call('HGET', key('table', heads), 'cost') or 0)
  local time = redis.call('TIME')
  local newest = redis.call('ZRANGE', told, -1, -1, 'WITHSCORES')
  all = {heads = key('table', heads), version = version, cost = cost}
  all.now = time[1] * 1000000 + time[2]
  all.newest = math.max(all.now, tonumber(newest[2] or 0))
end

local function add(name, row, first, last_part, story_bytes, ttl_ms)
  local story, last, chunks, cost = key('story', name), figures(name)
  if not last or (last > 0 and redis.call('EXISTS', story) == 0) then
    redis.call('UNLINK', story)
    last, chunks = 0, 0
  end
  local before = last
  for i = first, last_part, 2 do
    last = before + ARGV[i]
    redis.call('RPUSH', story, string.format('%016.0f', last) .. ARGV[i + 1])
    chunks = chunks + CHUNK_COST + #ARGV[i + 1]
  end
  while chunks > story_bytes and redis.call('LLEN', story) > 1 do
    chunks = chunks - CHUNK_COST - #redis.call('LPOP', story) + DIGITS
  end
  redis.call('PEXPIRE', story, ttl_ms)
  local now_costs = STORY_COST + #name + #row + chunks
  all.cost, all.newest = all.cost - cost + now_costs, all.newest + 1
  local said = whole(last) .. ' ' .. whole(chunks) .. ' ' .. whole(now_costs)
  redis.call('HSET', kept, name, said)
  redis.call('ZADD', told, whole(all.newest), name)
  write_row(all.heads, all.version, name, row)
end

local function let_go(name)
  local _, _, cost = figures(name)
  all.cost = all.cost - cost
  redis.call('UNLINK', key('story', name))
  redis.call('HDEL', kept, name)
  redis.call('ZREM', told, name)
  delete_row(all.heads, all.version, name)
end

-- Returns 1 if there may be more to let go than was done in this step.
local function keep_within(ttl_ms, all_bytes, many)
  for _ = 1, LET_GO_AT_ONCE do
    local oldest = redis.call('ZRANGE', told, 0, 0, 'WITHSCORES')
    if not oldest[1] then return 0 end
    local expired = tonumber(oldest[2]) <= all.now - ttl_ms * 1000
    if not expired and all.cost <= all_bytes and redis.call('ZCARD', told) <= many then
      return 0
    end
    let_go(oldest[1])
  end
  return 1
end

-- Takes the table of heads, the life of a new one, the TTL of everything, what a story's chunks
-- and what all stories may cost, and how many these may be; then for each passage the story, its
-- head, how many chunks of lines, and these, each after the number of its last line.
function op.tell()
  local ttl_ms, story_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
  begin_to_tell(ARGV[3], ARGV[4])
  local i = 9
  while i <= #ARGV do
    local last_part = i + 2 + 2 * ARGV[i + 2]
    add(ARGV[i], ARGV[i + 1], i + 3, last_part, story_bytes, ttl_ms)
    i = last_part + 1
  end
  local more = keep_within(ttl_ms, tonumber(ARGV[7]), tonumber(ARGV[8]))
  redis.call('HSET', all.heads, 'cost', whole(all.cost))
  forget_deletions(all.heads)
  last_for(all.heads, ttl_ms)
  redis.call('PEXPIRE', told, ttl_ms)
  redis.call('PEXPIRE', kept, ttl_ms)
  return more
end

local function number_of(chunk) return tonumber(string.sub(chunk, 1, DIGITS)) end

-- Takes the story, the number of a line, and how many bytes of lines are enough. Returns the
-- number of the last line there is, and chunks from the one on that has the line after that.
function op.told()
  local story, after, enough = key('story', ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  local newest = redis.call('LINDEX', story, -1)
  if not newest then return {'0'} end
  local low, high = 0, redis.call('LLEN', story)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if number_of(redis.call('LINDEX', story, middle)) > after then
      high = middle
    else
      low = middle + 1
    end
  end
  local found, size = {whole(number_of(newest))}, nil
  repeat
    local some = redis.call('LRANGE', story, low, low + CHUNKS_AT_ONCE - 1)
    for _, chunk in ipairs(some) do
      found[#found + 1] = chunk
      size = size and size + #chunk - DIGITS + 1 or 0 -- the first may end before what is asked for
      if size > enough then return found end
    end
    low = low + CHUNKS_AT_ONCE
  until #some == 0
  return found
end

-- Rates

-- Takes the bucket, the microseconds that one token takes to come, and how many it holds.
function op.draw()
  local bucket, each, burst = key('bucket', ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local full_at = math.max(now, tonumber(redis.call('GET', bucket) or 0))
  full_at = math.min(full_at, now + burst * each) -- the clock of another engine may be behind
  local wait = full_at - now - (burst - 1) * each
  if wait > 1 then return whole(math.ceil(wait)) end
  full_at = full_at + each
  redis.call('SET', bucket, whole(full_at), 'PX', whole(math.ceil((full_at - now) / 1000)))
  return '0'
end

return op[ARGV[1]]()
