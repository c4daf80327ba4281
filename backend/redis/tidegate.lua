#!lua name=tidegate

-- Tidegate's Redis functions, version prefix tg1. They need Redis 7.0 or later. REDIS.md describes every function.
--
-- Rules of this file:
-- * A function gets one key. It derives all other keys from it, with the same hash tag, so they share a slot.
-- * It checks all arguments before it writes anything.
-- * An error begins with a stable upper-case word.
-- * No number grows beyond 2^53, and none that is put into a string with `..` beyond 10^14: Lua's numbers are doubles,
--   and `..` writes 14 digits.

-- The version of this library. A gateway never replaces a newer one.
local VERSION = 1

-- Arguments -------------------------------------------------------------------------------------------------------

local EXACT_MAX = 9007199254740991 -- the greatest integer that a double and all below it are exact for
local TYPE_MAX = 2147483647        -- a push's type is a positive int32
local PAYLOAD_BYTES_MAX = 1048576 - 64
local ONCE_KEY_BYTES_MAX = 64
local ONCE_MS = 300000             -- how long a push's first answer is remembered
local TTL_MS_MAX = 4294967295      -- 49 days, as for pushes of a gateway
local VALID_MS_MAX = 86400000      -- a day
local BATCH_MAX = 1000             -- items of one call; also far below what Lua's unpack can take

local function bad(text)
  return redis.error_reply('TIDEGATE_BAD_CALL ' .. text)
end

-- The integer that `text` is in decimal, if it is between low and high. Otherwise nil.
local function integer(text, low, high)
  if not text or #text > 16 or not string.find(text, '^%d+$') then
    return nil
  end
  local number = tonumber(text)
  if number < low or number > high then
    return nil
  end
  return number
end

local function is_gateway(text)
  return text and #text <= 8 and string.find(text, '^[a-z0-9]+$')
end

-- Whether `text` is an unsigned 64-bit integer in decimal, without leading zeros.
local function is_user(text)
  if not text or not string.find(text, '^%d+$') or #text > 20 then
    return false
  end
  local has_leading_zero = #text > 1 and string.sub(text, 1, 1) == '0'
  return not has_leading_zero and (#text < 20 or text <= '18446744073709551615')
end

-- What is wrong with a push, as an error text. Nil if nothing is.
local function push_problem(type, payload, once, ttl_ms)
  if not integer(type, 1, TYPE_MAX) then
    return 'TIDEGATE_BAD_TYPE a type is an integer from 1 to 2147483647'
  end
  if #payload > PAYLOAD_BYTES_MAX then
    return 'TIDEGATE_TOO_LONG a payload has at most 1048512 bytes'
  end
  if once and #once > ONCE_KEY_BYTES_MAX then
    return 'TIDEGATE_BAD_KEY an idempotency key has at most 64 bytes'
  end
  if ttl_ms and not integer(ttl_ms, 0, TTL_MS_MAX) then
    return 'TIDEGATE_BAD_TTL a time to live is an integer from 0 to 4294967295 milliseconds'
  end
  return nil
end

-- The end of a push's life in unix milliseconds, as text: '0' if it has none.
local function expiry(ttl_ms, now_ms)
  if not ttl_ms or tonumber(ttl_ms) == 0 then
    return '0'
  end
  return tostring(now_ms + ttl_ms)
end

-- The server ------------------------------------------------------------------------------------------------------

-- Unix time in milliseconds. It does not change while a function runs.
local function unix_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The server's replication id. It changes whenever the server may have lost acknowledged writes: with a restart and with
-- a promotion. INFO is expensive, so the id is kept for 100 ms: no server is demoted, loses data and is promoted
-- within that time.
local RUN_KEPT_MS = 100
local run, run_read_ms
local function current_run(now_ms)
  if not run or now_ms < run_read_ms or now_ms - run_read_ms >= RUN_KEPT_MS then
    run = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
    run_read_ms = now_ms
  end
  return run
end

-- Whether the key's slot is being moved to or from this node of a cluster. Some of the keys are then on the other node,
-- and a function would create them a second time. Redis refuses two missing keys exactly while a slot is being moved.
local is_cluster
local function slot_moves(key)
  if is_cluster == nil then
    is_cluster = string.find(redis.call('INFO', 'cluster'), 'cluster_enabled:1', 1, true) ~= nil
  end
  if not is_cluster then
    return false
  end
  local answer = redis.pcall('EXISTS', key .. ':-', key .. ':--')
  return type(answer) == 'table' and answer.err ~= nil
end

-- The error that Redis itself uses: cluster clients retry on it.
local function try_again()
  return redis.error_reply('TRYAGAIN the slot of this key is being moved to another node')
end

-- The error of a call: `problem`, which says what is wrong with its arguments, or that its slot is being moved. Nil if
-- there is none.
local function refusal(key, problem)
  if problem then
    return redis.error_reply(problem)
  end
  return slot_moves(key) and try_again() or nil
end

-- Rooms -----------------------------------------------------------------------------------------------------------

local DEFAULT_POLICY = 'durable 1000 86400' -- class, entries of the stream, seconds that the keys outlive their last use
local WRITERS_MAX = 32

-- The fields of a room's hash that most calls need, as indexes of what read_room returns.
local LOG, HEAD, RUN, FRESH_UNTIL, MEMBERS, POLICY = 1, 2, 3, 4, 5, 6

local function is_room(key)
  return key and string.sub(key, 1, 11) == 'tg1:room:{r' and string.sub(key, -1) == '}'
end

-- The room's class, the length of its stream, and its keys' time to live in seconds.
local function policy_of(room)
  local policy = room[POLICY]
  if policy == DEFAULT_POLICY then
    return 'durable', '1000', 86400
  end
  local class, keep, ttl_s = string.match(policy, '^(%l+) (%d+) (%d+)$')
  return class, keep, tonumber(ttl_s)
end

-- The members of the room on all gateways, and until when that number holds. Counts whose time is over are removed.
local function count_members(key, now_ms)
  local counts = redis.call('HGETALL', key .. ':members')
  local members, holds_until, over = 0, EXACT_MAX, {}
  for i = 1, #counts, 2 do
    local count, counts_until = string.match(counts[i + 1], '^(%d+) (%d+)$')
    if tonumber(counts_until) < now_ms then
      over[#over + 1] = counts[i]
    else
      members = members + count
      holds_until = math.min(holds_until, tonumber(counts_until))
    end
  end
  if #over > 0 then
    redis.call('HDEL', key .. ':members', unpack(over))
  end
  return members, holds_until
end

-- Draws a log identity: 16 hexadecimal digits, not all zeros. math.random begins with the same seed in each call.
local draws = 0
local function draw_log(key, previous, now_run)
  local time = redis.call('TIME')
  local log
  repeat
    draws = draws + 1
    local seed = table.concat({now_run, time[1], time[2], key, draws, previous or ''}, ' ')
    log = string.sub(redis.sha1hex(seed), 1, 16)
  until log ~= '0000000000000000'
  return log
end

-- Gives the room a new identity: it is new, or its server is not the one that began the log. Offsets continue.
local function begin_log(key, room, now_ms)
  local last = redis.call('XREVRANGE', key .. ':log', '+', '-', 'COUNT', 1)[1]
  local last_offset = last and tonumber(string.match(last[1], '^%d+')) or 0
  room[RUN] = current_run(now_ms)
  room[LOG] = draw_log(key, room[LOG], room[RUN])
  room[HEAD] = math.max(room[HEAD], last_offset)
  room[FRESH_UNTIL] = 0
  -- In this order: Redis looks for the fields of a small hash one by one, from the first on.
  redis.call('HSET', key, 'log', room[LOG], 'head', room[HEAD], 'run', room[RUN], 'fresh_until', 0,
    'members', room[MEMBERS], 'policy', room[POLICY], 'base', room[HEAD])
  redis.call('SPUBLISH', key, 'n ' .. room[LOG] .. ' ' .. room[HEAD] .. '\n')
end

-- The room's state. Its identity holds on this server.
local function read_room(key, now_ms)
  local room = redis.call('HMGET', key, 'log', 'head', 'run', 'fresh_until', 'members', 'policy')
  room[HEAD] = tonumber(room[HEAD] or 0)
  room[FRESH_UNTIL] = tonumber(room[FRESH_UNTIL] or 0)
  room[MEMBERS] = tonumber(room[MEMBERS] or 0)
  room[POLICY] = room[POLICY] or DEFAULT_POLICY
  if room[RUN] ~= current_run(now_ms) then
    begin_log(key, room, now_ms)
  end
  return room
end

-- Counts the members and extends the life of the keys, both no more often than needed: `fresh_until` is the end of the
-- first count, or when half of the keys' life is over.
local function refresh(key, room, now_ms)
  local class, _, ttl_s = policy_of(room)
  local members, holds_until = count_members(key, now_ms)
  redis.call('EXPIRE', key, ttl_s)
  -- The stream lives a minute longer than the hash, so that no hash is found without its stream.
  local has_stream = redis.call('EXPIRE', key .. ':log', ttl_s + 60) == 1
  local fresh_until = math.min(holds_until, now_ms + ttl_s * 500)
  if class == 'durable' and not has_stream then
    -- The push that creates the stream has to give it its time to live.
    fresh_until = 0
  end
  room[MEMBERS], room[FRESH_UNTIL] = members, fresh_until
  redis.call('HSET', key, 'members', members, 'fresh_until', fresh_until)
end

-- Sends one push, and stores it if the room is durable. Returns its offset as text ('0' in a fleeting room) and how
-- many gateways heard it. The caller stores the new head. (Lua takes as long to write a number as for a small command.)
local function append(key, room, type, payload, expires_ms)
  local class, keep = policy_of(room)
  if class == 'fleeting' then
    return '0', redis.call('SPUBLISH', key, 'f ' .. type .. ' ' .. expires_ms .. '\n' .. payload)
  end
  room[HEAD] = room[HEAD] + 1
  local offset = tostring(room[HEAD])
  local id = offset .. '-0'
  if expires_ms == '0' then
    redis.call('XADD', key .. ':log', 'MAXLEN', '~', keep, id, 't', type, 'p', payload)
  else
    redis.call('XADD', key .. ':log', 'MAXLEN', '~', keep, id, 't', type, 'p', payload, 'x', expires_ms)
  end
  local header = 'd ' .. room[LOG] .. ' ' .. offset .. ' ' .. type .. ' ' .. expires_ms .. '\n'
  return offset, redis.call('SPUBLISH', key, header .. payload)
end

-- The first answer of a push with this idempotency key: offset, log, gateways, members. Nil if there was none.
local function first_answer(key, once)
  if not once or once == '' then
    return nil
  end
  local answer = redis.call('GET', key .. ':once:' .. once)
  if not answer then
    return nil
  end
  return string.match(answer, '^(%d+) (%x+) (%d+) (%d+)$')
end

local function remember_answer(key, once, offset, log, gateways, members)
  if once and once ~= '' then
    local answer = offset .. ' ' .. log .. ' ' .. gateways .. ' ' .. members
    redis.call('SET', key .. ':once:' .. once, answer, 'PX', ONCE_MS)
  end
end

-- KEYS[1] room. TYPE PAYLOAD [KEY [TTL_MS]] -> status, offset, log, gateways, members
local function publish(keys, args)
  local key, type, payload, once, ttl_ms = keys[1], args[1], args[2], args[3], args[4]
  if #keys ~= 1 or not is_room(key) or not payload or #args > 4 then
    return bad('usage: tidegate_publish 1 tg1:room:{rNAME} TYPE PAYLOAD [KEY [TTL_MS]]')
  end
  local refused = refusal(key, push_problem(type, payload, once, ttl_ms))
  if refused then
    return refused
  end
  local offset, log, gateways, members = first_answer(key, once)
  if offset then
    return {'ok', tonumber(offset), log, tonumber(gateways), tonumber(members)}
  end
  local now_ms = unix_ms()
  local room = read_room(key, now_ms)
  offset, gateways = append(key, room, type, payload, expiry(ttl_ms, now_ms))
  if offset ~= '0' then
    redis.call('HSET', key, 'head', offset)
  end
  if room[FRESH_UNTIL] < now_ms then
    refresh(key, room, now_ms)
  end
  remember_answer(key, once, offset, room[LOG], gateways, room[MEMBERS])
  return {'ok', tonumber(offset), room[LOG], gateways, room[MEMBERS]}
end

-- Forgets the writer with the lowest offset if as many writers are remembered as there may be.
local function evict_oldest_writer(key)
  local fields = redis.call('HGETALL', key)
  local writers, oldest, oldest_offset = 0, nil, EXACT_MAX
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 2) == 'w:' then
      local offset = tonumber(string.match(fields[i + 1], '^%d+ (%d+)'))
      writers = writers + 1
      if offset < oldest_offset then
        oldest, oldest_offset = fields[i], offset
      end
    end
  end
  if writers >= WRITERS_MAX then
    redis.call('HDEL', key, oldest)
  end
end

-- The results of a batch that was published before: `first` is the first offset that it took.
local function repeat_batch(key, args, first, is_durable)
  local results, next_offset = {}, first
  for i = 4, #args, 4 do
    local result = push_problem(args[i], args[i + 1], args[i + 2], args[i + 3])
    if not result then
      local offset = tonumber((first_answer(key, args[i + 2])))
      if not is_durable then
        result = 0
      elseif offset and offset ~= next_offset then
        result = offset
      else
        result, next_offset = next_offset, next_offset + 1
      end
    end
    results[#results + 1] = result
  end
  return results
end

-- Publishes the pushes of a batch. Returns their results and how many gateways heard the last one.
local function publish_batch(key, room, args, now_ms)
  local results, heard = {}, nil
  for i = 4, #args, 4 do
    local type, payload, once, ttl_ms = args[i], args[i + 1], args[i + 2], args[i + 3]
    local result = push_problem(type, payload, once, ttl_ms)
    if not result then
      result = tonumber((first_answer(key, once)))
    end
    if not result then
      result, heard = append(key, room, type, payload, expiry(ttl_ms, now_ms))
      remember_answer(key, once, result, room[LOG], heard, room[MEMBERS])
      result = tonumber(result)
    end
    results[#results + 1] = result
  end
  return results, heard
end

-- KEYS[1] room. WRITER SEQ N (TYPE PAYLOAD KEY TTL_MS)*N -> log, gateways, members, result * N
local function publish_many(keys, args)
  local key, writer, seq, count = keys[1], args[1], integer(args[2], 0, EXACT_MAX), integer(args[3], 1, BATCH_MAX)
  if #keys ~= 1 or not is_room(key) or not seq or not count or #args ~= 3 + 4 * count or #writer > 64 then
    return bad('usage: tidegate_publish_many 1 tg1:room:{rNAME} WRITER SEQ N (TYPE PAYLOAD KEY TTL_MS)*N, '
      .. 'with at most 1000 pushes and 64 bytes of WRITER')
  end
  if slot_moves(key) then
    return try_again()
  end
  local now_ms = unix_ms()
  local remembered = writer ~= '' and redis.call('HGET', key, 'w:' .. writer)
  local last_seq, first, stored = string.match(remembered or '', '^(%d+) (%d+) (%d+)$')
  if last_seq and seq < tonumber(last_seq) then
    return redis.error_reply('TIDEGATE_OLD_SEQ this writer has published a batch with a greater SEQ')
  end
  local room = read_room(key, now_ms)
  if room[FRESH_UNTIL] < now_ms then
    refresh(key, room, now_ms)
  end
  local results, heard
  if last_seq and seq == tonumber(last_seq) then
    results = repeat_batch(key, args, tonumber(first), stored ~= '0')
  else
    local head = room[HEAD]
    results, heard = publish_batch(key, room, args, now_ms)
    if room[HEAD] > head then
      redis.call('HSET', key, 'head', room[HEAD])
    end
    if writer ~= '' then
      if not last_seq then
        evict_oldest_writer(key)
      end
      local memory = string.format('%.0f', seq) .. ' ' .. head + 1 .. ' ' .. room[HEAD] - head
      redis.call('HSET', key, 'w:' .. writer, memory)
    end
    if room[FRESH_UNTIL] < now_ms then
      refresh(key, room, now_ms)
    end
  end
  heard = heard or redis.call('PUBSUB', 'SHARDNUMSUB', key)[2]
  return {room[LOG], heard, room[MEMBERS], unpack(results)}
end

-- Gives the room its policy.
local function set_policy(key, room, class, policy)
  if policy == room[POLICY] then
    return
  end
  if class == 'fleeting' then
    redis.call('UNLINK', key .. ':log')
  end
  room[POLICY] = policy
  redis.call('HSET', key, 'policy', policy)
end

local ENTRIES_STEP = 32 -- entries that are read at once, so that long ones are not read in vain

-- Reads up to `count` entries with `bytes` of payload, but one at least: from `low` on, or without it back from the newest.
local function read_entries(key, low, count, bytes)
  local command, first, last = 'XRANGE', low, '+'
  if not low then
    command, first, last = 'XREVRANGE', '+', '-'
  end
  local found = {}
  while #found < count do
    local step = math.min(ENTRIES_STEP, count - #found)
    local entries = redis.call(command, key .. ':log', first, last, 'COUNT', step)
    for _, entry in ipairs(entries) do
      bytes = bytes - #entry[2][4]
      if bytes < 0 and #found > 0 then
        return found
      end
      found[#found + 1] = entry
    end
    if #entries < step then
      break
    end
    first = '(' .. entries[#entries][1]
  end
  return found
end

-- Adds entries to `answer`: offset, type, end of life, payload.
local function add_entries(answer, entries, first, last, step)
  for i = first, last, step do
    local fields, n = entries[i][2], #answer
    answer[n + 1] = tonumber(string.match(entries[i][1], '^%d+'))
    answer[n + 2] = tonumber(fields[2])
    answer[n + 3] = tonumber(fields[6] or 0)
    answer[n + 4] = fields[4]
  end
end

-- KEYS[1] room. AFTER COUNT CLASS [KEEP [TTL_S [BYTES]]]
-- -> log, base, head, first offset held, {user, time, ...} who is barred, (offset, type, x, payload)*
local function open(keys, args)
  local key, class = keys[1], args[3]
  local after, count = integer(args[1], 0, EXACT_MAX), integer(args[2], 0, 100000)
  local keep, ttl_s = integer(args[4] or '1000', 1, 100000), integer(args[5] or '86400', 60, 31536000)
  local bytes = integer(args[6] or '1048576', 0, EXACT_MAX)
  if #keys ~= 1 or not is_room(key) or #args < 3 or #args > 6 or not (after or args[1] == '-') or not count
    or not (class == 'durable' or class == 'fleeting') or not keep or not ttl_s or not bytes then
    return bad('usage: tidegate_open 1 tg1:room:{rNAME} AFTER|- COUNT durable|fleeting [KEEP [TTL_S [BYTES]]]')
  end
  if slot_moves(key) then
    return try_again()
  end
  local now_ms = unix_ms()
  local room = read_room(key, now_ms)
  set_policy(key, room, class, class .. ' ' .. keep .. ' ' .. ttl_s)
  refresh(key, room, now_ms)
  local oldest = redis.call('XRANGE', key .. ':log', '-', '+', 'COUNT', 1)[1]
  local first = oldest and tonumber(string.match(oldest[1], '^%d+')) or room[HEAD] + 1
  local base = tonumber(redis.call('HGET', key, 'base'))
  local answer = {room[LOG], base, room[HEAD], first, redis.call('HGETALL', key .. ':barred')}
  if after then
    local entries = read_entries(key, '(' .. after .. '-0', count, bytes)
    add_entries(answer, entries, 1, #entries, 1)
  else
    local entries = read_entries(key, nil, count, bytes)
    add_entries(answer, entries, #entries, 1, -1)
  end
  return answer
end

local BARRED_MAX = 1000 -- users of one room; with more, all tickets from before are worthless

-- KEYS[1] room. USER UNTIL_S TTL_S [GATEWAY] -> gateways that heard it
local function bar(keys, args)
  local key, user, gateway = keys[1], args[1], args[4] or ''
  local until_s, ttl_s = integer(args[2], 0, 4294967295), integer(args[3], 1, 31536000)
  if #keys ~= 1 or not is_room(key) or #args < 3 or #args > 4 or not until_s or not ttl_s
    or not (gateway == '' or is_gateway(gateway)) then
    return bad('usage: tidegate_bar 1 tg1:room:{rNAME} USER UNTIL_S TTL_S [GATEWAY]')
  end
  local refused = refusal(key, not is_user(user) and 'TIDEGATE_BAD_USER a user is an unsigned 64-bit integer in decimal')
  if refused then
    return refused
  end
  local barred = key .. ':barred'
  -- A time far in the future would make all later tickets worthless too. Clocks differ by less than a minute.
  local now_s = math.floor(unix_ms() / 1000)
  until_s = math.min(math.max(until_s, now_s), now_s + 60)
  if redis.call('HLEN', barred) >= BARRED_MAX and redis.call('HEXISTS', barred, user) == 0 then
    redis.call('DEL', barred)
    redis.call('HSET', barred, '*', until_s)
    redis.call('SPUBLISH', key, 'x * ' .. until_s .. ' ' .. gateway .. '\n')
  end
  redis.call('HSET', barred, user, until_s)
  if redis.call('TTL', barred) < ttl_s then
    redis.call('EXPIRE', barred, ttl_s)
  end
  return redis.call('SPUBLISH', key, 'x ' .. user .. ' ' .. until_s .. ' ' .. gateway .. '\n')
end

-- KEYS[1] room. GATEWAY MEMBERS VALID_MS -> members on all gateways
local function count(keys, args)
  local key, gateway = keys[1], args[1]
  local members, valid_ms = integer(args[2], 0, 1000000000), integer(args[3], 1, VALID_MS_MAX)
  if #keys ~= 1 or not is_room(key) or #args ~= 3 or not is_gateway(gateway) or not members or not valid_ms then
    return bad('usage: tidegate_count 1 tg1:room:{rNAME} GATEWAY MEMBERS VALID_MS')
  end
  if slot_moves(key) then
    return try_again()
  end
  local now_ms = unix_ms()
  local room = read_room(key, now_ms)
  if members > 0 then
    redis.call('HSET', key .. ':members', gateway, members .. ' ' .. now_ms + valid_ms)
    -- No count is longer valid than this, so that nothing is left of a room without gateways.
    if redis.call('PTTL', key .. ':members') < valid_ms then
      redis.call('PEXPIRE', key .. ':members', valid_ms + 1000)
    end
  else
    redis.call('HDEL', key .. ':members', gateway)
  end
  refresh(key, room, now_ms)
  return room[MEMBERS]
end

-- Users -----------------------------------------------------------------------------------------------------------

local PARTITIONS = 128
local BUCKETS = 32
local GATEWAY_KEPT_MS = 60000 -- how long a gateway is remembered after its time is over

-- The partition that a key of users or tokens names. Nil if it is no such key.
local function partition_of(key, prefix)
  local partition = key and integer(string.match(key, '^' .. prefix .. ':{u(%d+)}$'), 0, PARTITIONS - 1)
  return partition and key == prefix .. ':{u' .. partition .. '}' and partition or nil
end

-- The bucket of a user of this partition. Nil if `user` is no unsigned 64-bit integer, or of another partition.
local function bucket_of(user, partition)
  if not is_user(user) then
    return nil
  end
  -- 10^12 is a multiple of 4096, so the last 12 digits decide.
  local low = tonumber(string.sub(user, -12)) % (PARTITIONS * BUCKETS)
  if low % PARTITIONS ~= partition then
    return nil
  end
  return math.floor(low / PARTITIONS)
end

local BAD_USER = 'TIDEGATE_BAD_USER a user is an unsigned 64-bit integer in decimal, and the key is that of its partition'

-- Which gateways are alive: gateway id -> true.
local function live_gateways(key, now_ms)
  local fields, live = redis.call('HGETALL', key .. ':gateways'), {}
  for i = 1, #fields, 2 do
    if tonumber(string.match(fields[i + 1], '^%d+')) >= now_ms then
      live[fields[i]] = true
    end
  end
  return live
end

-- The text of a user's field without the entries of gateways that are not alive.
local function live_entries(text, live)
  local kept = {}
  for gateway, stamp in string.gmatch(text, '([a-z0-9]+):(%d+)') do
    if live[gateway] then
      kept[#kept + 1] = gateway .. ':' .. stamp
    end
  end
  return table.concat(kept, ' ')
end

-- Stores the text of a user's field if it is not the old one, which is nil or false if there was none.
local function store_entries(bucket, user, old, new)
  if new == '' then
    if old then
      redis.call('HDEL', bucket, user)
    end
  elseif new ~= old then
    redis.call('HSET', bucket, user, new)
  end
end

-- The smallest stamp that stays if the user may be at `max` gateways, given all stamps.
local function winning_stamp(stamps, max)
  if max == 0 then
    return 0
  end
  table.sort(stamps, function(a, b) return a > b end)
  return stamps[math.min(max, #stamps)]
end

-- Registers this gateway's session of one user. Removes the sessions at other gateways that are beyond the limit, and
-- notifies those gateways. Returns the session's stamp and the smallest one that stays.
local function arrive_one(key, bucket, user, gateway, max, stamp, live)
  local old = redis.call('HGET', bucket, user)
  if not old then
    redis.call('HSET', bucket, user, gateway .. ':' .. stamp)
    return stamp, max > 0 and stamp or 0
  end
  local others, taken, stamps = {}, {}, {}
  for other, text in string.gmatch(old, '([a-z0-9]+):(%d+)') do
    local other_stamp = tonumber(text)
    if other == gateway then
      stamp = math.max(stamp, other_stamp)
    else
      others[#others + 1] = other .. ':' .. text
      taken[other_stamp] = true
      if live[other] then
        stamps[#stamps + 1] = other_stamp
      end
    end
  end
  while taken[stamp] do
    stamp = stamp + 1
  end
  stamps[#stamps + 1] = stamp
  local winning, kept = winning_stamp(stamps, max), {}
  for _, entry in ipairs(others) do
    local other, text = string.match(entry, '([a-z0-9]+):(%d+)')
    if live[other] and tonumber(text) >= winning then
      kept[#kept + 1] = entry
    elseif max > 0 then
      -- A gateway that is not alive may only be late, so it is notified too.
      redis.call('SPUBLISH', key .. ':' .. other, 'r ' .. user .. ' ' .. winning .. '\n')
    end
  end
  if stamp >= winning then
    kept[#kept + 1] = gateway .. ':' .. stamp
  end
  store_entries(bucket, user, old, table.concat(kept, ' '))
  return stamp, winning
end

-- What is wrong with the items of a call, as an error text. Each has `width` arguments, the first one at `from`: a user,
-- then integers. Nil if nothing is.
local function items_problem(args, from, width, partition)
  for i = from, #args, width do
    if not bucket_of(args[i], partition) then
      return BAD_USER
    end
    for j = i + 1, i + width - 1 do
      if not integer(args[j], 0, EXACT_MAX) then
        return 'TIDEGATE_BAD_CALL a number is not an integer from 0 to 9007199254740991'
      end
    end
  end
  return nil
end

-- KEYS[1] users. GATEWAY MAX N (USER AGE_MS KNOWN_STAMP)*N -> (stamp, winning stamp)*N
local function arrive(keys, args)
  local key, gateway = keys[1], args[1]
  local partition, max, n = partition_of(key, 'tg1:users'), integer(args[2], 0, 10000), integer(args[3], 1, BATCH_MAX)
  if #keys ~= 1 or not partition or not is_gateway(gateway) or not max or not n or #args ~= 3 + 3 * n then
    return bad('usage: tidegate_arrive 1 tg1:users:{uP} GATEWAY MAX N (USER AGE_MS KNOWN_STAMP)*N, with N up to 1000')
  end
  local refused = refusal(key, items_problem(args, 4, 3, partition))
  if refused then
    return refused
  end
  local now_ms = unix_ms()
  local live = live_gateways(key, now_ms)
  local newest = tonumber(redis.call('GET', key .. ':stamp') or 0)
  local answer, users, drawn = {}, {}, newest
  for i = 4, #args, 3 do
    local user, stamp = args[i], tonumber(args[i + 2])
    if stamp == 0 then
      -- The clock of a new master may be behind, so a stamp also is greater than all that were drawn before.
      drawn = math.max(now_ms, drawn + 1)
      stamp = math.max(drawn - tonumber(args[i + 1]), 1)
    end
    local bucket = key .. ':' .. bucket_of(user, partition)
    local final, winning = arrive_one(key, bucket, user, gateway, max, stamp, live)
    answer[#answer + 1] = {final, winning}
    users[#users + 1] = user
  end
  if drawn ~= newest then
    redis.call('SET', key .. ':stamp', drawn)
  end
  redis.call('ZREM', key .. ':left', unpack(users))
  return answer
end

-- KEYS[1] users. GATEWAY GRACE_MS N (USER STAMP)*N -> number of these users without a live entry
local function depart(keys, args)
  local key, gateway = keys[1], args[1]
  local partition = partition_of(key, 'tg1:users')
  local grace_ms, n = integer(args[2], 0, VALID_MS_MAX), integer(args[3], 1, BATCH_MAX)
  if #keys ~= 1 or not partition or not is_gateway(gateway) or not grace_ms or not n or #args ~= 3 + 2 * n then
    return bad('usage: tidegate_depart 1 tg1:users:{uP} GATEWAY GRACE_MS N (USER STAMP)*N, with N up to 1000')
  end
  local refused = refusal(key, items_problem(args, 4, 2, partition))
  if refused then
    return refused
  end
  local now_ms = unix_ms()
  local live = live_gateways(key, now_ms)
  local gone = 0
  for i = 4, #args, 2 do
    local user, stamp = args[i], tonumber(args[i + 1])
    local bucket = key .. ':' .. bucket_of(user, partition)
    local old = redis.call('HGET', bucket, user)
    local own = tonumber(string.match(' ' .. (old or ''), ' ' .. gateway .. ':(%d+)'))
    local keeps_own = own ~= nil and own > stamp
    live[gateway] = keeps_own or nil
    local new = live_entries(old or '', live)
    store_entries(bucket, user, old, new)
    if new == '' then
      gone = gone + 1
      redis.call('ZADD', key .. ':left', 'NX', now_ms + grace_ms, user)
    end
  end
  return gone
end

-- Sends a message to each gateway that has the user, except one. Returns how many have the user (a gateway that is late
-- and hears it counts) and how many heard it.
local function send_to_user(key, bucket, user, message, except)
  local has, heard = 0, 0
  local text = redis.call('HGET', key .. ':' .. bucket, user)
  for gateway in string.gmatch(text or '', '([a-z0-9]+):') do
    if gateway ~= except then
      local receivers = redis.call('SPUBLISH', key .. ':' .. gateway, message)
      heard = heard + receivers
      if receivers > 0 or live_gateways(key, unix_ms())[gateway] then
        has = has + 1
      end
    end
  end
  return has, heard
end

-- Pushes to one user, if the push's idempotency key is new. Returns has and heard of the first time.
local function push_once(key, bucket, user, type, payload, once, ttl_ms, except)
  local once_key = once and once ~= '' and key .. ':once:' .. user .. ':' .. once
  local first = once_key and redis.call('GET', once_key)
  if first then
    local has, heard = string.match(first, '^(%d+) (%d+)$')
    return tonumber(has), tonumber(heard)
  end
  local expires_ms = ttl_ms and ttl_ms ~= '0' and expiry(ttl_ms, unix_ms()) or '0'
  local message = 'p ' .. user .. ' ' .. type .. ' ' .. expires_ms .. '\n' .. payload
  local has, heard = send_to_user(key, bucket, user, message, except)
  if once_key then
    redis.call('SET', once_key, has .. ' ' .. heard, 'PX', ONCE_MS)
  end
  return has, heard
end

-- KEYS[1] users. USER TYPE PAYLOAD [KEY [TTL_MS [EXCEPT]]] -> gateways that have the user, gateways that heard it
local function push_user(keys, args)
  local key, user, type, payload, once, ttl_ms, except = keys[1], unpack(args)
  local partition = partition_of(key, 'tg1:users')
  if #keys ~= 1 or not partition or #args < 3 or #args > 6 then
    return bad('usage: tidegate_push_user 1 tg1:users:{uP} USER TYPE PAYLOAD [KEY [TTL_MS [EXCEPT_GATEWAY]]]')
  end
  local bucket = bucket_of(user, partition)
  local refused = refusal(key, not bucket and BAD_USER or push_problem(type, payload, once, ttl_ms))
  if refused then
    return refused
  end
  return {push_once(key, bucket, user, type, payload, once, ttl_ms, except)}
end

-- KEYS[1] users. N (USER TYPE PAYLOAD KEY TTL_MS EXCEPT)*N -> N answers of push_user, or error texts
local function push_users(keys, args)
  local key, n = keys[1], integer(args[1], 1, BATCH_MAX)
  local partition = partition_of(key, 'tg1:users')
  if #keys ~= 1 or not partition or not n or #args ~= 1 + 6 * n then
    return bad('usage: tidegate_push_users 1 tg1:users:{uP} N (USER TYPE PAYLOAD KEY TTL_MS EXCEPT_GATEWAY)*N, '
      .. 'with N up to 1000')
  end
  if slot_moves(key) then
    return try_again()
  end
  local answer = {}
  for i = 2, #args, 6 do
    local user, type, payload, once, ttl_ms, except = unpack(args, i, i + 5)
    local bucket = bucket_of(user, partition)
    local problem = not bucket and BAD_USER or push_problem(type, payload, once, ttl_ms)
    if problem then
      answer[#answer + 1] = problem
    else
      answer[#answer + 1] = {push_once(key, bucket, user, type, payload, once, ttl_ms, except)}
    end
  end
  return answer
end

-- KEYS[1] users. USER [EXCEPT] -> gateways that have the user, gateways that heard it
local function kick(keys, args)
  local key, user, except = keys[1], args[1], args[2]
  local partition = partition_of(key, 'tg1:users')
  if #keys ~= 1 or not partition or #args < 1 or #args > 2 then
    return bad('usage: tidegate_kick 1 tg1:users:{uP} USER [EXCEPT_GATEWAY]')
  end
  local bucket = bucket_of(user, partition)
  local refused = refusal(key, not bucket and BAD_USER)
  if refused then
    return refused
  end
  return {send_to_user(key, bucket, user, 'k ' .. user .. '\n', except)}
end

-- KEYS[1] users. USER ROOM -> gateways that have the user, gateways that heard it
local function expel(keys, args)
  local key, user, room = keys[1], args[1], args[2]
  local partition = partition_of(key, 'tg1:users')
  if #keys ~= 1 or not partition or #args ~= 2 or #room < 1 or #room > 128 then
    return bad('usage: tidegate_expel 1 tg1:users:{uP} USER ROOM, with 1 to 128 bytes of ROOM')
  end
  local bucket = bucket_of(user, partition)
  local refused = refusal(key, not bucket and BAD_USER)
  if refused then
    return refused
  end
  return {send_to_user(key, bucket, user, 'e ' .. user .. '\n' .. room)}
end

-- KEYS[1] users. GATEWAY VALID_MS -> 1, or 0 if entries of this gateway may be lost
local function alive(keys, args)
  local key, gateway, valid_ms = keys[1], args[1], integer(args[2], 1, VALID_MS_MAX)
  if #keys ~= 1 or not partition_of(key, 'tg1:users') or #args ~= 2 or not is_gateway(gateway) or not valid_ms then
    return bad('usage: tidegate_alive 1 tg1:users:{uP} GATEWAY VALID_MS')
  end
  if slot_moves(key) then
    return try_again()
  end
  local now_ms = unix_ms()
  local now_run, was_alive = current_run(now_ms), 0
  local fields, over = redis.call('HGETALL', key .. ':gateways'), {}
  for i = 1, #fields, 2 do
    local alive_until, its_run = string.match(fields[i + 1], '^(%d+) (%x+)$')
    if fields[i] == gateway then
      was_alive = tonumber(alive_until) >= now_ms and its_run == now_run and 1 or 0
    elseif tonumber(alive_until) + GATEWAY_KEPT_MS < now_ms then
      over[#over + 1] = fields[i]
    end
  end
  redis.call('HSET', key .. ':gateways', gateway, now_ms + valid_ms .. ' ' .. now_run)
  if #over > 0 then
    redis.call('HDEL', key .. ':gateways', unpack(over))
  end
  return was_alive
end

-- KEYS[1] users. USER... -> for each one its live entries, "gateway:stamp gateway:stamp"; "" if it is offline
local function online(keys, args)
  local key = keys[1]
  local partition = partition_of(key, 'tg1:users')
  if #keys ~= 1 or not partition or #args < 1 or #args > BATCH_MAX then
    return bad('usage: tidegate_online 1 tg1:users:{uP} USER..., with up to 1000 users')
  end
  local refused = refusal(key, items_problem(args, 1, 1, partition))
  if refused then
    return refused
  end
  local live, answer = live_gateways(key, unix_ms()), {}
  for i, user in ipairs(args) do
    local text = redis.call('HGET', key .. ':' .. bucket_of(user, partition), user)
    answer[i] = live_entries(text or '', live)
  end
  return answer
end

-- KEYS[1] users. -> number of users with an entry
local function count_users(keys, args)
  local key = keys[1]
  if #keys ~= 1 or not partition_of(key, 'tg1:users') or #args ~= 0 then
    return bad('usage: tidegate_count_users 1 tg1:users:{uP}')
  end
  if slot_moves(key) then
    return try_again()
  end
  local users = 0
  for bucket = 0, BUCKETS - 1 do
    users = users + redis.call('HLEN', key .. ':' .. bucket)
  end
  return users
end

-- KEYS[1] users. B GRACE_MS -> number of entries dropped
local function sweep(keys, args)
  local key, bucket, grace_ms = keys[1], integer(args[1], 0, BUCKETS - 1), integer(args[2], 0, VALID_MS_MAX)
  if #keys ~= 1 or not partition_of(key, 'tg1:users') or #args ~= 2 or not bucket or not grace_ms then
    return bad('usage: tidegate_sweep 1 tg1:users:{uP} B GRACE_MS, with B from 0 to 31')
  end
  if slot_moves(key) then
    return try_again()
  end
  local now_ms = unix_ms()
  local live, dropped = live_gateways(key, now_ms), 0
  local bucket_key = key .. ':' .. bucket
  local fields = redis.call('HGETALL', bucket_key)
  for i = 1, #fields, 2 do
    local user, old = fields[i], fields[i + 1]
    local new = live_entries(old, live)
    if new ~= old then
      dropped = dropped + select(2, string.gsub(old, ':', '')) - select(2, string.gsub(new, ':', ''))
      store_entries(bucket_key, user, old, new)
      if new == '' then
        redis.call('ZADD', key .. ':left', 'NX', now_ms + grace_ms, user)
      end
    end
  end
  return dropped
end

-- KEYS[1] users. COUNT -> (user, at)*: users who count as offline since `at`, in unix milliseconds
local function due(keys, args)
  local key, limit = keys[1], integer(args[1], 1, BATCH_MAX)
  local partition = partition_of(key, 'tg1:users')
  if #keys ~= 1 or not partition or #args ~= 1 or not limit then
    return bad('usage: tidegate_due 1 tg1:users:{uP} COUNT, with COUNT up to 1000')
  end
  if slot_moves(key) then
    return try_again()
  end
  local now_ms = unix_ms()
  local left = redis.call('ZRANGEBYSCORE', key .. ':left', '-inf', now_ms, 'WITHSCORES', 'LIMIT', 0, limit)
  if #left == 0 then
    return left
  end
  local live, answer = live_gateways(key, now_ms), {}
  for i = 1, #left, 2 do
    local user = left[i]
    local text = redis.call('HGET', key .. ':' .. bucket_of(user, partition), user)
    if live_entries(text or '', live) == '' then
      answer[#answer + 1] = user
      answer[#answer + 1] = tonumber(left[i + 1])
    else
      redis.call('ZREM', key .. ':left', user)
    end
  end
  return answer
end

-- KEYS[1] users. (USER AT)* -> number of users removed: those that still count as offline since AT
local function told(keys, args)
  local key = keys[1]
  local partition = partition_of(key, 'tg1:users')
  if #keys ~= 1 or not partition or #args < 2 or #args > 2 * BATCH_MAX or #args % 2 ~= 0 then
    return bad('usage: tidegate_told 1 tg1:users:{uP} (USER AT)*, with up to 1000 users')
  end
  local refused = refusal(key, items_problem(args, 1, 2, partition))
  if refused then
    return refused
  end
  local removed = 0
  for i = 1, #args, 2 do
    local at = redis.call('ZSCORE', key .. ':left', args[i])
    -- A user who came back and left again has a later time, and needs a separate event.
    if at and tonumber(at) == tonumber(args[i + 1]) then
      removed = removed + redis.call('ZREM', key .. ':left', args[i])
    end
  end
  return removed
end

-- Gateway ids: the seconds since 2026-01-01 in base 36, or one more than the last id. So a server that has lost its
-- data does not give the id of a running gateway a second time.
local GATEWAY_EPOCH_S = 1767225600

-- KEYS[1] tg1:gateways. -> a gateway id that nobody has
local function gateway_id(keys, args)
  local key = keys[1]
  if #keys ~= 1 or key ~= 'tg1:gateways' or #args ~= 0 then
    return bad('usage: tidegate_gateway_id 1 tg1:gateways')
  end
  local seconds = math.floor(unix_ms() / 1000) - GATEWAY_EPOCH_S
  local number = math.max(seconds, tonumber(redis.call('GET', key) or 0) + 1)
  redis.call('SET', key, number)
  local digits = ''
  repeat
    local digit = number % 36
    digits = string.sub('0123456789abcdefghijklmnopqrstuvwxyz', digit + 1, digit + 1) .. digits
    number = math.floor(number / 36)
  until number == 0
  return digits
end

-- Tokens ----------------------------------------------------------------------------------------------------------

-- A token is given by its SHA-256, so nobody who reads this server can log in with what is here, and keys have one shape.
local function is_token(text)
  return text and #text == 64 and not string.find(text, '[^0-9a-f]')
end

local BAD_TOKEN = 'TIDEGATE_BAD_TOKEN a token is given by its SHA-256 in 64 lower-case hexadecimal digits'

-- KEYS[1] tokens. N (USER TOKEN)*N -> N times -2 (no such token), -1 (without end), or milliseconds until its end
local function tokens(keys, args)
  local key, n = keys[1], integer(args[1], 1, BATCH_MAX)
  local partition = partition_of(key, 'tg1:tokens')
  if #keys ~= 1 or not partition or not n or #args ~= 1 + 2 * n then
    return bad('usage: tidegate_tokens 1 tg1:tokens:{uP} N (USER TOKEN)*N, with N up to 1000')
  end
  local problem
  for i = 2, #args, 2 do
    problem = problem or not bucket_of(args[i], partition) and BAD_USER
  end
  local refused = refusal(key, problem)
  if refused then
    return refused
  end
  local answer = {}
  for i = 2, #args, 2 do
    -- What can't be a token is none. An empty one would name the user's index.
    local known = is_token(args[i + 1])
    answer[#answer + 1] = known and redis.call('PTTL', key .. ':' .. args[i] .. ':' .. args[i + 1]) or -2
  end
  return answer
end

-- KEYS[1] tokens. USER TOKEN TTL_MS -> OK
local function issue(keys, args)
  local key, user, token, ttl_ms = keys[1], args[1], args[2], integer(args[3], 0, 31536000000)
  local partition = partition_of(key, 'tg1:tokens')
  if #keys ~= 1 or not partition or #args ~= 3 or not ttl_ms then
    return bad('usage: tidegate_issue 1 tg1:tokens:{uP} USER TOKEN TTL_MS')
  end
  local refused = refusal(key, not bucket_of(user, partition) and BAD_USER or not is_token(token) and BAD_TOKEN)
  if refused then
    return refused
  end
  local now_ms = unix_ms()
  local index = key .. ':' .. user
  redis.call('ZREMRANGEBYSCORE', index, '-inf', now_ms)
  if ttl_ms == 0 then
    redis.call('SET', index .. ':' .. token, '1')
    redis.call('ZADD', index, '+inf', token)
    redis.call('PERSIST', index)
  else
    redis.call('SET', index .. ':' .. token, '1', 'PX', ttl_ms)
    redis.call('ZADD', index, now_ms + ttl_ms, token)
    -- The index lives as long as the token that lives longest.
    local last = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2]
    if last ~= 'inf' then
      redis.call('PEXPIREAT', index, last)
    end
  end
  return redis.status_reply('OK')
end

-- KEYS[1] tokens. USER TOKEN -> tokens deleted, gateways that heard it
local function revoke(keys, args)
  local key, user, token = keys[1], args[1], args[2]
  local partition = partition_of(key, 'tg1:tokens')
  if #keys ~= 1 or not partition or #args ~= 2 then
    return bad('usage: tidegate_revoke 1 tg1:tokens:{uP} USER TOKEN|*')
  end
  local is_valid = token == '*' or is_token(token)
  local refused = refusal(key, not bucket_of(user, partition) and BAD_USER or not is_valid and BAD_TOKEN)
  if refused then
    return refused
  end
  local index, deleted = key .. ':' .. user, 0
  if token == '*' then
    for _, issued in ipairs(redis.call('ZRANGE', index, 0, -1)) do
      deleted = deleted + redis.call('DEL', index .. ':' .. issued)
    end
    redis.call('DEL', index)
  else
    deleted = redis.call('DEL', index .. ':' .. token)
    redis.call('ZREM', index, token)
  end
  return {deleted, redis.call('SPUBLISH', key, user .. '\n' .. token)}
end

-- Registration ----------------------------------------------------------------------------------------------------

local function version()
  return VERSION
end

-- KEYS[1] tg1:gateways, so that all gateways of a cluster ask the same node -> unix microseconds
local function server_time(keys, args)
  if #keys ~= 1 or #args ~= 0 then
    return bad('usage: tidegate_time 1 tg1:gateways')
  end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function register(name, callback)
  redis.register_function('tidegate_' .. name, callback)
end

local function register_reader(name, callback)
  redis.register_function{function_name = 'tidegate_' .. name, callback = callback, flags = {'no-writes'}}
end

register_reader('version', version)
register_reader('time', server_time)

register('publish', publish)
register('publish_many', publish_many)
register('open', open)
register('bar', bar)
register('count', count)

register('gateway_id', gateway_id)
register('arrive', arrive)
register('depart', depart)
register('alive', alive)
register('push_user', push_user)
register('push_users', push_users)
register('kick', kick)
register('expel', expel)
register('sweep', sweep)
register('due', due)
register('told', told)
register_reader('online', online)
register_reader('count_users', count_users)

register_reader('tokens', tokens)
register('issue', issue)
register('revoke', revoke)
