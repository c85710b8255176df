package control

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds"
)

// hangingStore does not answer, from hang to release, where keys with a prefix are put.
type hangingStore struct {
	store.Store
	mu      sync.Mutex
	prefix  string
	waiting chan struct{} // is told of each call that hangs; nil: none does
	freed   chan struct{}
}

func (s *hangingStore) hang(prefix string) (waiting <-chan struct{}, release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prefix, s.waiting, s.freed = prefix, make(chan struct{}, 100), make(chan struct{})
	return s.waiting, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting = nil
		close(s.freed)
	})
}

func (s *hangingStore) PutState(ctx context.Context, key string, value []byte) error {
	s.mu.Lock()
	prefix, waiting, freed := s.prefix, s.waiting, s.freed
	s.mu.Unlock()
	if waiting != nil && strings.HasPrefix(key, prefix) {
		waiting <- struct{}{}
		<-freed
	}
	return s.Store.PutState(ctx, key, value)
}

const sharedYAML = `
kind: Gateway
name: g
listeners: [{name: http, address: 127.0.0.1, port: 8080}]
---
kind: Function
name: f
source: f
server: {command: [./f]}
---
kind: Secret
name: keys
jwks: '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}'
---
kind: Route
name: strict
hostnames: [a.test]
policies: {authentication: {jwt: {issuer: ISSUER, audiences: [a], jwks_secret: keys}}}
rules: [{forward: {backends: [{backend: functions/f}]}}]
`

// startSharing starts a plane with a function of one instance behind a route that needs a token.
func startSharing(t *testing.T) (*plane, *hangingStore, pb.RunnerService_ConnectClient) {
	t.Helper()
	dir := t.TempDir()
	st := &hangingStore{Store: openStore(t, dir)}
	p := serve(t, st, dir)
	writeNow(t, p, "one")
	runner, _ := connectRunner(t, p, filepath.Join(dir, "pki"), runnerIdentity+"a", "a")
	report(t, runner, 7001)
	until(t, "the endpoint to be published", func() bool { return endpointOf(p.generation()) != "" })
	return p, st, runner
}

// writeNow has tokens of an issuer accepted, and waits for nothing.
func writeNow(t *testing.T, p *plane, issuer string) int64 {
	t.Helper()
	return p.mustPut(t, decodeYAML(t, strings.Replace(sharedYAML, "ISSUER", issuer, 1))...)
}

// generation is what proxies may have.
func (p *plane) generation() *xds.Generation {
	p.core.compiling.Lock()
	defer p.core.compiling.Unlock()
	return p.core.views["default/-"].published
}

// endpointOf is the version of the function's endpoints; "" when there are none.
func endpointOf(g *xds.Generation) string {
	if r := g.Get(xds.Endpoint, testFunction); r != nil && strings.Contains(string(r.Body.GetValue()), "127.0.0.1") {
		return r.Version
	}
	return ""
}

// TestEndpointsDoNotWaitForTheStore: while a store hangs that has to know, before
// proxies do, what hosts share, writes return and endpoints reach the proxies.
func TestEndpointsDoNotWaitForTheStore(t *testing.T) {
	p, st, runner := startSharing(t)
	before := p.generation()
	waiting, release := st.hang(sharedPrefix)
	t.Cleanup(release)
	revision := writeNow(t, p, "two")
	<-waiting
	report(t, runner, 7002)
	until(t, "the new endpoint", func() bool { return endpointOf(p.generation()) != endpointOf(before) })
	if g := p.generation(); g.Revision >= revision || !covers(before, g) {
		t.Errorf("revision %d is published before the store knows of what it shares", g.Revision)
	}
	third := writeNow(t, p, "three") // waits behind the one that hangs
	release()
	until(t, "the newest revision", func() bool { return p.generation().Revision == third })
	if g := p.generation(); covers(before, g) {
		t.Error("the new issuer is not published")
	}
	until(t, "the store to forget what all proxies have followed to", func() bool {
		left, err := st.State(t.Context(), sharedPrefix)
		if err != nil {
			t.Fatal(err)
		}
		return len(left) == 0
	})
}

// TestFreeze: endpoints are published while settle holds newer revisions back.
func TestFreeze(t *testing.T) {
	p, _, runner := startSharing(t)
	until(t, "the first revision to be published", func() bool { return p.generation().Revision == p.core.Snapshot().Revision() })
	before := p.generation()
	frozen := p.core.freeze()
	revision := writeNow(t, p, "two")
	report(t, runner, 7002)
	until(t, "the new endpoint", func() bool { return endpointOf(p.generation()) != endpointOf(before) })
	if got := p.generation().Revision; got != frozen || frozen >= revision {
		t.Errorf("revision %d is published, of %d frozen and %d written", got, frozen, revision)
	}
	p.core.thaw()
	until(t, "the written revision", func() bool { return p.generation().Revision == revision })
}

// TestReportsDoNotWaitForTheStore: while a store hangs that is to keep that a version has
// served, the next report of its runner reaches the proxies.
func TestReportsDoNotWaitForTheStore(t *testing.T) {
	p, st, runner := startSharing(t)
	version := p.core.Snapshot().Versions(testFunction)[0]
	before := endpointOf(p.generation())
	waiting, release := st.hang(servedPrefix)
	t.Cleanup(release)
	ready := &pb.Instance{
		Function: testFunction, Version: version.GetNumber(), Id: "i", Address: "127.0.0.1", Port: 7001, State: pb.InstanceState_INSTANCE_STATE_READY,
	}
	if err := runner.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: &pb.RunnerState{Instances: []*pb.Instance{ready}}}}); err != nil {
		t.Fatal(err)
	}
	<-waiting
	report(t, runner, 7002)
	until(t, "the new endpoint", func() bool { return endpointOf(p.generation()) != before })
	release()
	until(t, "the store to know that the version has served", func() bool {
		state, err := st.State(t.Context(), servedKey(version.GetName()))
		return err == nil && len(state) == 1
	})
}
