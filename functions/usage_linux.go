package functions

import (
	"os"
	"strconv"
	"strings"
)

// ticks is USER_HZ, in which the kernel tells processor time: 100 on every
// architecture that Go runs Linux on.
const ticks = 100

// processes reads /proc/*/stat (proc(5)).
func processes() map[int]process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	out := make(map[int]process, len(entries))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		if p, ok := parseStat(string(b)); ok {
			out[pid] = p
		}
	}
	return out
}

// parseStat reads what follows the name, which may hold anything, parentheses too.
func parseStat(s string) (process, bool) {
	end := strings.LastIndexByte(s, ')')
	if end < 0 {
		return process{}, false
	}
	f := strings.Fields(s[end+1:])
	if len(f) < 22 {
		return process{}, false
	}
	// Fields 4 (ppid), 14 and 15 (utime, stime), 24 (rss) of the whole line.
	parent, err1 := strconv.Atoi(f[1])
	user, err2 := strconv.ParseUint(f[11], 10, 64)
	system, err3 := strconv.ParseUint(f[12], 10, 64)
	pages, err4 := strconv.ParseInt(f[21], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
		return process{}, false
	}
	return process{
		parent: parent, cpu: float64(user+system) / ticks,
		memory: float64(max(0, pages)) * float64(os.Getpagesize()) / (1 << 20),
	}, true
}
