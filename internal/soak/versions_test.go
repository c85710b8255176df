package soak

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestFunctionVersions: a function under load gets new versions, other shares of
// them, and another scale, again and again. No request is lost, and in the end all
// go to the version that has all of the traffic.
func TestFunctionVersions(t *testing.T) {
	p := newPlane(t, restless)
	startRunner(t, p)
	address := p.function(t, "versions", "{min: 1, max: 3}", "concurrency: 4")
	name := "projects/default/functions/versions"
	f, ok := p.core.Snapshot().Get(name).(*pb.Function)
	if !ok {
		t.Fatal("no function")
	}
	var l tally
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wait := callers(ctx, 8, address, 20*time.Millisecond, &l)
	change := func(what string, edit func(*pb.Function)) {
		next := &pb.Function{Name: name, Contract: f.GetContract(), Source: f.GetSource(), Env: map[string]string{}, Scale: f.GetScale(), Concurrency: f.GetConcurrency(), Traffic: f.GetTraffic()}
		for k, v := range f.GetEnv() {
			next.Env[k] = v
		}
		edit(next)
		if err := p.try(t.Context(), []*pb.Resource{{Kind: &pb.Resource_Function{Function: next}}}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		f = next
		seen := l.gets.Load()
		waitFor(t, "some requests", func() bool { return l.gets.Load() > seen+20 })
	}
	newest := p.core.Snapshot().Revision() // a version has the number of its revision
	for n := range 4 {
		before := newest
		change("a new version", func(f *pb.Function) { f.Env["N"] = fmt.Sprint(n) })
		newest = p.core.Snapshot().Revision()
		change("a split", func(f *pb.Function) {
			f.Traffic = []*pb.Traffic{{Version: before, Weight: 1}, {Version: newest, Weight: 1 + uint32(n)}}
		})
		change("another scale", func(f *pb.Function) { f.Scale = &pb.Scale{Min: uint32(1 + n%2), Max: 4} })
		change("all to the newest", func(f *pb.Function) { f.Traffic = nil })
	}
	cancel()
	wait()
	l.nothingLost(t, "new versions")
}
