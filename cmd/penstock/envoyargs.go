package main

import (
	"strconv"
	"time"
)

// listenerDrain is how long requests under way may take to end after a change of their
// listener. Envoy's --drain-time-s is that time and the one of a shutdown at once, so a
// shutdown is timed by drain instead: a proxy that ends in five seconds must not cut uploads
// and streams off five seconds after each change of an edge profile or a certificate. What
// Envoy drains it holds for all of this time, so it cannot be without an end.
const listenerDrain = 10 * time.Minute

// envoyArgs are the arguments of each Envoy that serves.
func envoyArgs(bootstrap string) []string {
	return []string{
		"-c", bootstrap, "--log-level", "warning", "--disable-hot-restart",
		"--drain-time-s", strconv.Itoa(int(listenerDrain.Seconds())),
		// Each response says that its connection closes, so that the next request comes to the
		// listener as it is now; gradually, some would come to the old one for all of the time.
		"--drain-strategy", "immediate",
	}
}
