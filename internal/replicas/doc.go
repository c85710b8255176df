// Package replicas tests several control planes on one external etcd, with all
// real parts: `penstock control` and `penstock runner` processes, an etcd server
// behind mutual TLS, and Envoys that know every replica. It has no code of its own.
package replicas
