"""The Lua scripts of the ``redis`` event store. Redis executes each script completely or not at all.

A transaction (MULTI) is not enough, because it cannot compare: if a stale batch overlaps the end of the stream, MULTI
would append the rest of the batch.

All scripts take the same keys, in this order:

1. the stream of events, with ids ``OFFSET-0``
2. the hash of the state: ``epoch``, ``first``, ``last``, ``appended_at_ms``, ``resume_point``, ``bell`` (the id of the
   newest notification)
3. the stream of notifications, with a single entry that is replaced when the head moves; followers block on it
4. durable subscriptions: the hash of acknowledged positions
5. the sorted set of the times of their last use
6. the hash of the tokens of their holders
7. the current state: the sorted set of its objects by the offset of their event
8. the hash of these events, packed
9. the sorted set of objects that have ended, by the head at their end: their events up to there do not count

The hash of the state also has the current state's ``generation``, ``marks``, the offset up to which it is ``folded``,
the number of its ``objects`` and of those that have ``ended``, ``swept`` (a generation, and the offset up to which the
objects of each type have left it, packed), and ``state_at``: the head and the resume point that it belongs to.
``state_at`` begins with "2", which earlier versions do not write, so neither version continues the other's state.

The first argument is the name of the next epoch, in case a script has to begin one. Every script first checks that
there is a state, and that the stream has the length in the state. If not (a Redis that was emptied, or that evicts
keys), the remaining events are deleted and a new epoch begins. If the current state lacks objects, it counts as missing
and is not continued.
"""

from typing import Final

FIELDS: Final = ("at", "type", "object", "conversation", "channel", "truncated", "body")
"""The fields of an event, always all and in this order, because the scripts address values by their index.

``truncated`` is "1", "0", or "0 AGE" with the age of the change in milliseconds. The age has no field of its own,
because servers of earlier versions, which may read the stream during an upgrade, accept exactly these fields. For the
same reason a truncated event has no age here: these servers take any value other than "1" for a complete event.
"""

_BEGINNING: Final = """
local events, state, notifications, acknowledged, used, holders = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local current, kept, ended = KEYS[7], KEYS[8], KEYS[9]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', state, 'epoch', 'first', 'last', 'bell')
local epoch, first, last, notified = known[1], tonumber(known[2]), tonumber(known[3]), known[4]

local function notify()
  notified = redis.call('XADD', notifications, 'MAXLEN', 1, '*', 'rung', '')
  redis.call('HSET', state, 'bell', notified)
end

-- UNLINK frees the memory in another thread, so nothing waits for the deletion of a million events.
local function begin(name)
  redis.call('UNLINK', events)
  epoch, first, last = name, 1, 0
  redis.call('HSET', state, 'epoch', epoch, 'first', first, 'last', last)
  notify()
end

local function count_objects()
  redis.call('HSET', state, 'objects', redis.call('ZCARD', current), 'ended', redis.call('ZCARD', ended))
end

-- Redis evicts whole keys, and returns the length of a key without counting. So a comparison shows cheaply if one is
-- missing.
local function has_all_objects()
  local counted = redis.call('HMGET', state, 'objects', 'ended')
  local objects, over = tonumber(counted[1] or 0), tonumber(counted[2] or 0)
  return objects == redis.call('ZCARD', current) and objects == redis.call('HLEN', kept)
    and over == redis.call('ZCARD', ended)
end

-- %.0f, here and wherever an offset becomes text: Lua writes numbers of 15 digits and more with an exponent.
local function here(point)
  return string.format('2 %s-%.0f %s', epoch, last, point)
end

local function folded()
  return tonumber(redis.call('HGET', state, 'folded') or -1)
end

local function generation()
  local found = redis.call('HMGET', state, 'resume_point', 'generation', 'state_at')
  -- While the state counts as missing, a trim may delete events that the state lacks.
  return found[3] == here(found[1] or '') and folded() >= first - 1 and has_all_objects() and found[2]
end

local function swept_of(wanted)
  local found = redis.call('HGET', state, 'swept')
  local of, types = unpack(found and cmsgpack.unpack(found) or {})
  return of == wanted and types or {}
end

local function bounds()
  return {epoch, first, last, now_ms, notified}
end

if not epoch or redis.call('XLEN', events) ~= last - first + 1 then begin(ARGV[1]) end
"""

BOUNDS: Final = (
    _BEGINNING
    + """
local found = redis.call('HMGET', state, 'resume_point', 'marks')
return {bounds(), found[1], generation(), found[2] or "", folded()}
"""
)
"""Returns the bounds (epoch, first, last, now_ms, id of the newest notification), the resume point, and the generation
and marks of the current state, and how far it is folded; no generation if it is not of the head."""

# Errors are the exception to "completely or not at all": Redis does not undo what a script wrote before the error. So
# everything that may reject the append is compared before it writes. Redis reports a lack of memory only as long as a
# script has not written.
APPEND: Final = (
    _BEGINNING
    + """
local point = redis.call('HGET', state, 'resume_point')
local other = ARGV[5] ~= '' and (not point or ARGV[5] ~= '=' .. point)
if epoch ~= ARGV[2] or last ~= tonumber(ARGV[3]) or other then return {bounds()} end
local at = math.max(now_ms, tonumber(redis.call('HGET', state, 'appended_at_ms') or 0))
local begun, over, swept, place, before = ARGV[6], tonumber(ARGV[8]), tonumber(ARGV[9]), 11, last
if begun ~= '' then
  if redis.call('HGET', state, 'generation') ~= begun then
    redis.call('UNLINK', current, kept, ended)
    redis.call('HSET', state, 'folded', last)
  elseif not has_all_objects() then
    -- Reported as stale: the recorder then reads the bounds, finds no state in them, and begins a new generation.
    return {bounds()}
  end
end
local first_ended = place
place = place + over
local gone = swept_of(begun)
for _ = 1, swept do
  gone[ARGV[place]] = math.max(gone[ARGV[place]] or 0, math.min(tonumber(ARGV[place + 1]), last))
  place = place + 2
end
local is_new = place <= #ARGV
for place = place, #ARGV, 6 do
  last = last + 1
  redis.call('XADD', events, string.format('%.0f-0', last), 'at', string.format('%.0f', at), 'type', ARGV[place],
    'object', ARGV[place + 1], 'conversation', ARGV[place + 2], 'channel', ARGV[place + 3], 'truncated',
    ARGV[place + 4], 'body', ARGV[place + 5])
end
-- At the new head: an object may change and end in one append, and its events in this append do not count either.
for place = first_ended, first_ended + over - 1 do redis.call('ZADD', ended, last, ARGV[place]) end
redis.call('HSET', state, 'last', last, 'appended_at_ms', at, 'resume_point', ARGV[4])
if begun ~= '' then
  redis.call('HSET', state, 'generation', begun, 'marks', ARGV[7], 'state_at', here(ARGV[4]))
  redis.call('HSET', state, 'swept', cmsgpack.pack({begun, gone}))
  if ARGV[10] == '0' and folded() == before then redis.call('HSET', state, 'folded', last) end
  count_objects()
else
  redis.call('HDEL', state, 'state_at')
end
if is_new then notify() end
return {bounds(), at}
"""
)
"""Arguments: the expected epoch and last; the resume point; ``=`` and the resume point that it replaces, or empty text
if that is not compared; the generation of the current state or empty text, and its marks; how many objects have
ended and how many types are swept; 0 if there is nothing to fold; these objects; these types, each with an offset;
six values for each event. Returns the bounds, and the time of the append unless it was stale.
"""

FOLD: Final = (
    _BEGINNING
    + """
if generation() ~= ARGV[2] then return 0 end
local limit, bytes_max, reached, types = tonumber(ARGV[3]), tonumber(ARGV[4]), folded(), {}
for argument = 5, #ARGV do types[ARGV[argument]] = true end
local over = redis.call('ZRANGEBYSCORE', ended, '-inf', reached, 'WITHSCORES', 'LIMIT', 0, limit)
for index = 1, #over, 2 do
  local object = over[index]
  -- If the object exists again, the state may have an event after its end already, and that one stays.
  if tonumber(redis.call('ZSCORE', current, object) or 'inf') <= tonumber(over[index + 1]) then
    redis.call('ZREM', current, object)
    redis.call('HDEL', kept, object)
  end
  redis.call('ZREM', ended, object)
end
-- XRANGE has no limit of bytes. The first steps are small, so that few large events are read in vain.
local seen, bytes, step = 0, 0, 4
while reached < last and seen < limit and bytes < bytes_max do
  step = math.min(2 * step, 64, limit - seen)
  local entries = redis.call('XRANGE', events, string.format('(%.0f-0', reached), '+', 'COUNT', step)
  if #entries == 0 then break end
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    seen, reached, bytes = seen + 1, tonumber(string.match(entry[1], '^%d+')), bytes + #fields[14]
    if types[fields[4]] then
      redis.call('ZADD', current, reached, fields[6])
      redis.call('HSET', kept, fields[6], cmsgpack.pack(fields))
    end
    if bytes >= bytes_max then break end
  end
end
redis.call('HSET', state, 'folded', reached)
count_objects()
return (reached < last or redis.call('ZCOUNT', ended, '-inf', reached) > 0) and 1 or 0
"""
)
"""Adds the next events of the log to the current state, and deletes those of objects whose end it has reached.

Arguments: the generation; how many entries are scanned at most, and after how many bytes of bodies the scan ends; the
types. Returns 1 if there is more to add, else 0."""

_MATCHING: Final = """
local function matching(place_at)
  local place, wanted, narrow, channels = tonumber(ARGV[place_at]), ARGV[place_at + 1], #ARGV > place_at + 1, {}
  for argument = place_at + 2, #ARGV do channels[ARGV[argument]] = true end
  return function(fields)
    return (place == 0 or fields[place] == wanted) and (not narrow or channels[fields[CHANNEL]])
  end
end
""".replace("CHANNEL", str(2 * (FIELDS.index("channel") + 1)))
"""``matching(place_at)`` returns a function of an entry's fields: whether the event belongs to the destination.

``ARGV[place_at]`` and the following arguments name it (``match_arguments``): the index of the value to compare, 0 for
none; the value that it must have; the allowed channels, none for all."""

CURRENT: Final = (
    _BEGINNING
    + _MATCHING
    + """
if epoch ~= ARGV[2] or generation() ~= ARGV[3] or folded() < tonumber(ARGV[4]) then return {bounds()} end
local until_, after, count, bytes_max, matches = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), matching(8)
local gone = swept_of(ARGV[3])
local scanned = redis.call('ZRANGEBYSCORE', current, '(' .. after, until_, 'WITHSCORES', 'LIMIT', 0, count)
local found, bytes, reached, more = {}, 0, 0, #scanned == 2 * count
for index = 1, #scanned, 2 do
  local object = scanned[index]
  local fields = cmsgpack.unpack(redis.call('HGET', kept, object))
  reached, bytes = tonumber(scanned[index + 1]), bytes + #fields[14]
  if reached <= (gone[fields[4]] or 0) then
    redis.call('ZREM', current, object)
    redis.call('HDEL', kept, object)
    redis.call('HINCRBY', state, 'objects', -1)
  elseif matches(fields) and tonumber(redis.call('ZSCORE', ended, object) or 0) < reached then
    found[#found + 1] = {string.format('%.0f-0', reached), fields}
  end
  if bytes >= bytes_max and index + 1 < #scanned then
    more = true
    break
  end
end
return {bounds(), more and 1 or 0, string.format('%.0f-0', reached), found}
"""
)
"""Scans events of the current state and returns those that match and have not ended; deletes those that were swept.

Swept events are deleted here and not by an append, because an append would have to check every object of every type in
one script. With 300,000 objects of other types that took 1.6 s on an idle machine, and Redis served no other connection
meanwhile.

Arguments: the epoch and the generation; the offset at which the scan ends; then as for ``SCAN``, from the offset on.
Returns the same as ``SCAN``."""

BEGIN_EPOCH: Final = (
    _BEGINNING
    + """
if epoch ~= ARGV[2] or last ~= tonumber(ARGV[3]) then return {bounds(), 0} end
begin(ARGV[1])
redis.call('HDEL', state, 'resume_point')
if ARGV[4] then redis.call('HSET', state, 'resume_point', ARGV[4]) end
return {bounds(), 1}
"""
)
"""Arguments: the expected epoch and last, and the resume point if there is one. Returns the bounds and 1 or 0: whether
the epoch began."""

SCAN: Final = (
    _BEGINNING
    + _MATCHING
    + """
local backwards, from, count, bytes_max = ARGV[3] == '1', tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if epoch ~= ARGV[2] or (not backwards and from < first - 1) then return {bounds()} end
local step_max, matches = 64, matching(7)
-- Ranges that exclude their beginning, with a parenthesis, need Redis 6.2.
local command, at, last_id = 'XRANGE', string.format('(%.0f-0', from), '+'
if backwards then command, at, last_id = 'XREVRANGE', string.format('%.0f-0', from), '-' end
local found, seen, bytes, reached, more = {}, 0, 0, false, 1
while more == 1 and seen < count and bytes < bytes_max do
  local step = math.min(step_max, count - seen)
  local entries = redis.call(command, events, at, last_id, 'COUNT', step)
  -- This is the end of the stream, unless the bytes are reached before the last of these entries.
  if #entries < step then more = 0 end
  for place_of_entry, entry in ipairs(entries) do
    seen, reached, bytes = seen + 1, entry[1], bytes + #entry[2][14]
    if matches(entry[2]) then found[#found + 1] = entry end
    if bytes >= bytes_max then
      if place_of_entry < #entries then more = 1 end
      break
    end
  end
  if reached then at = '(' .. reached end
end
return {bounds(), more, reached, found}
"""
)
"""Scans entries from a position and returns those that match.

Arguments: the epoch; 1 for backwards; the offset after which (backwards: from which) the scan begins; how many entries
are scanned at most; the bytes of scanned bodies after which the scan ends; the destination (``_MATCHING``).

Returns the bounds, whether there may be more (1 or 0), the id of the last scanned entry, and the entries that match;
only the bounds if the position has expired."""

_LAST_BEFORE: Final = """
local function last_before(before_ms, high)
  local low = first - 1
  while low < high do
    local middle = math.floor((low + high + 1) / 2)
    local id = string.format('%.0f-0', middle)
    if tonumber(redis.call('XRANGE', events, id, id)[1][2][2]) < before_ms then low = middle else high = middle - 1 end
  end
  return low
end
"""
"""Finds the newest event up to an offset that was appended before a time; times never fall as offsets grow."""

SINCE: Final = _BEGINNING + _LAST_BEFORE + "return {bounds(), last_before(now_ms - tonumber(ARGV[2]), last)}"
"""Argument: an age in milliseconds. Returns the bounds, and the newest offset that is older."""

TRIM: Final = (
    _BEGINNING
    + _LAST_BEFORE
    + """
local before_ms, keep, limit = now_ms - tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local unused_before = '(' .. string.format('%.0f', now_ms - tonumber(ARGV[5]))
local unused = redis.call('ZRANGEBYSCORE', used, '-inf', unused_before, 'LIMIT', 0, limit)
for _, name in ipairs(unused) do
  redis.call('HDEL', acknowledged, name)
  redis.call('HDEL', holders, name)
  redis.call('ZREM', used, name)
end
local high = math.min(last, first - 1 + limit)
if generation() then high = math.min(high, folded()) end
local upto = math.max(math.min(last - keep, high), last_before(before_ms, high))
local count = upto - (first - 1)
if count <= 0 then return 0 end
redis.call('XTRIM', events, 'MINID', '=', string.format('%.0f-0', upto + 1))
redis.call('HSET', state, 'first', upto + 1)
return count
"""
)
"""Arguments: the age of events in milliseconds, how many events are retained, how many are deleted at most, and for how
many milliseconds a durable subscription may be unused. Returns how many events were deleted."""

CLAIM: Final = (
    _BEGINNING
    + """
local found = {}
for place = 2, #ARGV, 2 do
  redis.call('HSET', holders, ARGV[place], ARGV[place + 1])
  redis.call('ZADD', used, now_ms, ARGV[place])
  found[#found + 1] = redis.call('HGET', acknowledged, ARGV[place]) or ''
end
return found
"""
)
"""Arguments for each: owner and name as one text, and the token. Returns the position of each, or empty text."""

ACKNOWLEDGE: Final = (
    _BEGINNING
    + """
local lost = {}
for place = 2, #ARGV, 4 do
  local name, token, of, offset = ARGV[place], ARGV[place + 1], ARGV[place + 2], ARGV[place + 3]
  local holder = redis.call('HGET', holders, name) or token
  if holder ~= token then
    lost[#lost + 1] = (place - 2) / 4
  else
    local kept = redis.call('HGET', acknowledged, name)
    -- An epoch has letters and digits only, so it needs no escaping in the pattern.
    local known = kept and string.match(kept, '^' .. of .. '%-(%d+)$')
    if not known or tonumber(known) < tonumber(offset) then
      redis.call('HSET', acknowledged, name, of .. '-' .. offset)
    end
    redis.call('HSET', holders, name, token)
    redis.call('ZADD', used, now_ms, name)
  end
end
return lost
"""
)
"""Arguments for each: owner and name as one text, the token, the epoch, the offset. Returns the indexes, from 0, of
those that have lost their subscription."""
