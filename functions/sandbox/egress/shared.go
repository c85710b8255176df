//go:build linux

package egress

import (
	"sync"

	"golang.org/x/sys/unix"
)

// shared are places for the connections, and for the questions to name servers, of all
// sandboxes of this process: each costs descriptors, and one function that takes as many
// as it can must leave enough to the others, and to all else that the process does. One
// sandbox has a quarter of them at most.
type shared struct{ connections, questions chan struct{} }

// descriptorsEach is how many descriptors are counted for a connection: its two ends and
// the pipes of splice(2) take up to six.
const descriptorsEach = 16

// ofProcess are those of this process, by the descriptors that it may have open.
var ofProcess = sync.OnceValue(func() *shared {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		limit.Cur = 1024
	}
	return newShared(int(min(limit.Cur, 1<<20)))
})

func newShared(descriptors int) *shared {
	n := max(16, descriptors/descriptorsEach)
	return &shared{make(chan struct{}, n), make(chan struct{}, n)}
}

// enter takes a place of both, or says why there is none.
func enter(own, all chan struct{}) (leave func(), why string) {
	select {
	case own <- struct{}{}:
	default:
		return nil, "too many connections at once"
	}
	select {
	case all <- struct{}{}:
		return func() { <-all; <-own }, ""
	default:
		<-own
		return nil, "too many connections of all functions at once"
	}
}
