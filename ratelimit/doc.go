// Package ratelimit decides how often something may be called. Envoy's ratelimit
// filter asks it for every request (Service, the rate limit service v3), and it
// needs no configuration of its own: each limit travels whole in a descriptor
// (Spec). Counters are in memory (Memory) or in Redis, shared by all limiters
// (Redis). All limits of a request are decided at once: all take, or none.
package ratelimit
