// Package soak holds the tests of the whole system under load: the control plane
// as it is served, a real Envoy, real upstreams and the real limiter. A seeded
// stream of changes goes through the configuration API while clients call; no
// request may fail or reach the wrong backend, and no open stream may be cut.
//
// The short form runs with the other tests. PENSTOCK_SOAK=1 makes it the long
// one: more changes, more requests (PENSTOCK_SOAK_CHANGES says how many changes of
// each churn). PENSTOCK_SOAK_SEED repeats a run's choices.
package soak
