-- Decides many requests in one call, each all or nothing, with the arithmetic of
-- state.go, gcra.go and window.go. All numbers stay integers below 2^53, where
-- doubles are exact, so that the result is the same bit for bit.
--
-- KEYS: the distinct counters.
-- ARGV: now in microseconds, or '' for the server's clock, which all limiters share;
--       the number of limits, and of each: requests, window in microseconds, burst,
--       flags (1: fixed window, 2: shadow);
--       of each request: the number of its limits, and of each: index of the key,
--       index of the limit, cost.
-- Returns now, then of each limit of each request: allowed (1 or 0), at, used.

local floor, fmod, format = math.floor, math.fmod, string.format
local argv, keys = ARGV, KEYS
local EXACT = 9007199254740992 -- 2^53
local CHUNK = 4096             -- of keys in one MGET: unpack has a limit
local MAX_TTL = 3153600000000  -- 100 years in ms: SET refuses what overflows

local now
if argv[1] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(argv[1])
end

-- a*b/c rounded down, for 0 <= a < c < 2^45 and b < 2^35.
local function muldiv(a, b, c)
  local product = a * b
  if product < EXACT then
    return (product - fmod(product, c)) / c
  end
  local q, r = 0, 0
  local unit = 268435456 -- 2^28: five digits of seven bits, the highest first
  for _ = 1, 5 do
    local digit = floor(b / unit)
    b = b - digit * unit
    unit = unit / 128
    local x = r * 128 + a * digit
    r = fmod(x, c)
    q = q * 128 + (x - r) / c
  end
  return q
end

local function advance(at, used, n, w, fixed)
  if fixed then
    local start = now - fmod(now, w)
    if at < start then
      return start, 0
    end
    return start, used
  end
  if used <= 0 then
    return now, 0
  end
  if at > now then
    at = now
  end
  local dt = now - at
  if dt >= w then
    local passed = (dt - fmod(dt, w)) / w
    if passed >= used or passed * n >= used then
      return now, 0
    end
    at = at + passed * w
    used = used - passed * n
    dt = now - at
  end
  if muldiv(dt, n, w) >= used then
    return now, 0
  end
  return at, used
end

-- The limits.
local n, w, burst, fixed, shadow = {}, {}, {}, {}, {}
local p = 3
for i = 1, tonumber(argv[2]) do
  n[i], w[i], burst[i] = tonumber(argv[p]), tonumber(argv[p + 1]), tonumber(argv[p + 2])
  local flags = tonumber(argv[p + 3])
  fixed[i], shadow[i] = flags % 2 == 1, flags >= 2
  p = p + 4
end

-- The counters; what cannot be read counts as never used.
local at, used, by = {}, {}, {} -- by: the limit that took last, if any did
for from = 1, #keys, CHUNK do
  local values = redis.call('MGET', unpack(keys, from, math.min(from + CHUNK - 1, #keys)))
  for i = 1, #values do
    local a, u
    if values[i] then
      a, u = string.match(values[i], '^(%d+):(%d+)$')
    end
    at[from + i - 1], used[from + i - 1] = tonumber(a or 0), tonumber(u or 0)
  end
end

local out, o = { now }, 1
local oldAt, oldUsed, oldBy = {}, {}, {}
while p <= #argv do
  local count = tonumber(argv[p])
  local first = p + 1
  local refused = false
  for i = 1, count do
    local k, s, cost = tonumber(argv[p + 1]), tonumber(argv[p + 2]), tonumber(argv[p + 3])
    p = p + 3
    oldAt[i], oldUsed[i], oldBy[i] = at[k], used[k], by[k]
    local a, u = advance(at[k], used[k], n[s], w[s], fixed[s])
    local free = burst[s] - u
    if not fixed[s] and u > 0 then
      free = math.min(free + muldiv(now - a, n[s], w[s]), burst[s])
    end
    local allowed = 0
    if free >= math.max(cost, 1) then
      allowed = 1
      u = u + cost
      if cost > 0 then
        by[k] = s
      end
    elseif not shadow[s] then
      refused = true
    end
    at[k], used[k] = a, u
    out[o + 1], out[o + 2], out[o + 3] = allowed, a, u
    o = o + 3
  end
  p = p + 1
  if refused then
    -- Undo, the last first, and report each counter as it was.
    for i = count, 1, -1 do
      local k = tonumber(argv[first + 3 * (i - 1)])
      at[k], used[k], by[k] = oldAt[i], oldUsed[i], oldBy[i]
    end
    for i = 1, count do
      local k, s = tonumber(argv[first + 3 * (i - 1)]), tonumber(argv[first + 3 * (i - 1) + 1])
      local r = o - 3 * (count - i + 1) + 1
      out[r + 1], out[r + 2] = advance(at[k], used[k], n[s], w[s], fixed[s])
    end
  end
end

for k, s in pairs(by) do
  local ends
  if fixed[s] then
    ends = at[k] + w[s]
  else
    ends = at[k] + used[k] / n[s] * w[s]
  end
  -- A second more than needed: the quotient above is rounded.
  local ttl = math.min(math.ceil((ends - now) / 1000) + 1000, MAX_TTL)
  redis.call('SET', keys[k], format('%.0f:%.0f', at[k], used[k]), 'PX', format('%.0f', ttl))
end
return out
