package control

import (
	"context"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
)

// slowStore takes commits, from slow on, for as long as their caller waits.
type slowStore struct {
	store.Store
	slow    atomic.Bool
	began   chan struct{}
	running atomic.Int32
}

func (s *slowStore) Commit(ctx context.Context, base int64, changes []store.Change, info store.Info) (store.Revision, error) {
	if s.slow.Load() {
		s.running.Add(1)
		defer s.running.Add(-1)
		s.began <- struct{}{}
		<-ctx.Done()
		return store.Revision{}, ctx.Err()
	}
	return s.Store.Commit(ctx, base, changes, info)
}

// TestNothingRunsAfterClose: an automatic rollback under way, the stream of a runner, a
// watch and all loops have ended when Close returns.
func TestNothingRunsAfterClose(t *testing.T) {
	dir := t.TempDir()
	st := &slowStore{Store: openStore(t, dir), began: make(chan struct{}, 100)}
	p := serve(t, st, dir)
	rule := &pb.AutoRollback{MaxErrorRate: 0.5, MinRequests: 5}
	first, second := function("1"), function("2")
	first.AutoRollback, second.AutoRollback = rule, rule
	p.mustPut(t, first)
	runner, _ := connectRunner(t, p, filepath.Join(dir, "pki"), runnerIdentity+"a", "a")
	report(t, runner, 7001)
	until(t, "the endpoint to be known", func() bool { return len(p.core.runners.endpoints(testFunction)) == 1 })
	p.mustPut(t, second)
	watch, err := pb.NewConfigServiceClient(p.conn).Watch(t.Context(), &pb.WatchRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	st.slow.Store(true)
	stats := &pb.RunnerStats{Functions: []*pb.FunctionStats{{Function: testFunction, Requests: 10, Errors: 10}}}
	if err := runner.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_Stats{Stats: stats}}); err != nil {
		t.Fatal(err)
	}
	<-st.began

	p.stop()
	if n := st.running.Load(); n != 0 {
		t.Errorf("%d commits run on after Close", n)
	}
	p.core.background(func(context.Context) { t.Error("something begins after Close") })
	// A goroutine that has ended may still be listed for a moment.
	defer func() {
		if t.Failed() {
			t.Log(strings.Join(goroutines(), "\n\n"))
		}
	}()
	until(t, "the goroutines of this package to end", func() bool { return len(goroutines()) == 0 })
}

// goroutines are the stacks that the control plane is in, but for those of tests.
func goroutines() (out []string) {
	b := make([]byte, 1<<22)
	for stack := range strings.SplitSeq(string(b[:runtime.Stack(b, true)]), "\n\n") {
		if strings.Contains(stack, "internal/control") && !strings.Contains(stack, "internal/control.Test") {
			out = append(out, stack)
		}
	}
	return out
}
