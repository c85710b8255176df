// Package ledger knows what each Envoy has been sent, has acknowledged, has
// refused and has left unanswered, and decides what to send it next.
//
// It is a state machine without clock, network or goroutine: requests of a proxy
// and times go in, responses come out. The caller serialises all calls on a
// Table and its Proxies.
//
// # The rules
//
//   - At most one response per proxy and type is unanswered. What changes
//     meanwhile is merged: only the newest version of a name is ever sent.
//   - A resource is sent when each resource that it refers to (xds.Resource.Refs)
//     is acknowledged by that proxy. A reference to a type that Envoy asks for by
//     name only once the referrer is there (routes, secrets, extension
//     configurations, endpoints), and has not asked for yet, is looked through:
//     what it refers to itself must be acknowledged. References are followed only
//     downwards in the order secret, endpoint < cluster < extension config < route
//     < scope < listener, so there are no cycles.
//   - Routes that follow scopes (xds.Resource.After) are sent when each of these scopes
//     that may still be acknowledged is. One that is held back by a refusal is not waited
//     for, or it would hold back its neighbours.
//   - A cluster waits for nothing: Envoy keeps its old one until endpoints and
//     secrets of the new are there, and withholds the acknowledgement until then.
//     After each cluster its endpoints are sent again, even unchanged: Envoy
//     warms the new cluster with them and does not ask (envoy issue 13009); and
//     they are sent even if cluster and endpoints are gone meanwhile, since Envoy
//     acknowledges no cluster while one warms. After each listener the scopes,
//     secrets and extension configurations are sent again, for the like reason.
//   - Routes of a lazy scope (xds.Resource.Lazy) need not be asked for: until they
//     are, only what they refer to has to be acknowledged. Who asks while the wanted
//     version has to wait, or was refused, gets the version before.
//   - A resource that is gone from the generation is removed from a proxy when
//     nothing that the proxy holds or may hold refers to it, and a grace period
//     later. Listeners and scopes, to which nothing refers, are removed as soon as
//     all that their revision brought is acknowledged.
//   - A client may take some types alone. It is told of removals, and waited for, by
//     what it asks for: one that holds nothing from an earlier stream at once, one that
//     comes back when it has had the time to ask for the rest (askWithin).
//   - A refused response of several resources is sent again in halves until the
//     bad one is known. A refused resource is not sent again until its version
//     changes; the proxy keeps the version before, and one that has none gets the
//     last version that some proxy acknowledged. What refers to a refused resource
//     that the proxy does not hold in any version is held.
//   - What is quarantined (Table.Quarantine) counts as refused by every proxy, so
//     none is sent it; the last good version, which the caller may have kept over
//     a restart, serves in its place.
//
// # How it stays small
//
// A Table is shared by the proxies of a view and gives each resource name a
// number. A Proxy is a few bit sets over these numbers (what it subscribed to,
// what it holds, what it holds in the current version) and small maps of the
// exceptions: what it holds in another version, what it refused. Ten thousand
// resources cost a converged proxy about 5 kB.
package ledger
