package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/penstock-gateway/penstock/bench/report"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/envoytest"
)

// killed is a control plane that is killed again and again.
type killed struct {
	dir, api string
	args     []string
	process  *exec.Cmd
	conn     *grpc.ClientConn
	routes   pb.RouteServiceClient
}

func newKilled(t *testing.T) *killed {
	t.Helper()
	port := func() string { return fmt.Sprintf("127.0.0.1:%d", envoytest.FreePort(t)) }
	k := &killed{dir: t.TempDir(), api: port()}
	k.args = []string{"control", "--data-dir", k.dir, "--api-listen", k.api, "--http-listen", port(), "--xds-listen", port(), "--log-level", "error"}
	conn, err := grpc.NewClient(k.api, grpc.WithTransportCredentials(insecure.NewCredentials()), connect.Owner(k.dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	k.conn, k.routes = conn, pb.NewRouteServiceClient(conn)
	return k
}

// start starts it, and returns how long it took until it answered.
func (k *killed) start(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	k.process = penstock(context.WithoutCancel(t.Context()), k.args...)
	k.process.Stderr = os.Stderr
	k.process.Env = slices.DeleteFunc(k.process.Env, func(v string) bool { return strings.HasPrefix(v, "PENSTOCK_KILL") })
	if err := k.process.Start(); err != nil {
		t.Fatal(err)
	}
	k.conn.ResetConnectBackoff()
	await(t, func() error {
		k.conn.ResetConnectBackoff()
		_, err := k.routes.ListRoutes(t.Context(), &pb.ListRoutesRequest{Parent: "projects/default", PageSize: 1})
		return err
	})
	return time.Since(began)
}

func (k *killed) kill() {
	_ = k.process.Process.Kill()
	_ = k.process.Wait()
}

// writer changes its own routes, each to a higher number, as long as it is answered.
type writer struct {
	id    int
	next  int
	acked map[string]int // by route
	count int
}

func (w *writer) run(ctx context.Context, routes pb.RouteServiceClient, acked chan<- struct{}) {
	for {
		w.next++
		name := fmt.Sprintf("projects/default/routes/w%d-%d", w.id, w.next%7)
		_, err := routes.UpdateRoute(ctx, &pb.UpdateRouteRequest{
			AllowMissing: true, Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE},
			Route: &pb.Route{Name: name, Rules: []*pb.RouteRule{{Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200, Body: strconv.Itoa(w.next)}}}}},
		})
		if err != nil {
			return
		}
		w.acked[name] = w.next
		w.count++
		acked <- struct{}{}
	}
}

// lost counts the routes that are older than what was acknowledged.
func (k *killed) lost(t *testing.T, writers []*writer) (lost int) {
	t.Helper()
	r, err := k.routes.ListRoutes(t.Context(), &pb.ListRoutesRequest{Parent: "projects/default", PageSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]int{}
	for _, route := range r.GetRoutes() {
		n, err := strconv.Atoi(route.GetRules()[0].GetDirectResponse().GetBody())
		if err != nil {
			t.Fatal(err)
		}
		stored[route.GetName()] = n
	}
	for _, w := range writers {
		for name, n := range w.acked {
			if stored[name] < n {
				lost++
				t.Errorf("%s is %d, and %d was acknowledged", name, stored[name], n)
			}
		}
	}
	return lost
}

// TestControlKills kills a control plane under three writers: nothing that it acknowledged is
// lost, and it starts again each time. PENSTOCK_KILL_ROUNDS is how often; PENSTOCK_KILLS
// names the file of the figures.
func TestControlKills(t *testing.T) {
	rounds := 4
	if text := os.Getenv("PENSTOCK_KILL_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	k := newKilled(t)
	t.Cleanup(func() { k.kill() })
	writers := []*writer{{id: 0, acked: map[string]int{}}, {id: 1, acked: map[string]int{}}, {id: 2, acked: map[string]int{}}}
	rnd := rand.New(rand.NewPCG(1, 5))
	lost, starts := 0, []float64{}
	for range rounds {
		starts = append(starts, k.start(t).Seconds())
		lost += k.lost(t, writers)
		ctx, cancel := context.WithCancel(t.Context())
		acked := make(chan struct{})
		var all sync.WaitGroup
		for _, w := range writers {
			all.Go(func() { w.run(ctx, k.routes, acked) })
		}
		// While the others are somewhere in theirs.
		for range 1 + rnd.IntN(100) {
			<-acked
		}
		k.kill()
		go func() {
			for range acked { // what was still on its way
			}
		}()
		all.Wait()
		close(acked)
		cancel()
	}
	starts = append(starts, k.start(t).Seconds())
	lost += k.lost(t, writers)
	count := 0
	for _, w := range writers {
		count += w.count
	}
	slices.Sort(starts)
	t.Logf("%d kills, %d writes acknowledged, %d lost; start to first answer: median %.2f s, longest %.2f s", rounds, count, lost, report.Quantile(starts, 0.5), starts[len(starts)-1])
	file := os.Getenv("PENSTOCK_KILLS")
	if file == "" {
		return
	}
	r := report.New()
	r.Add("kill -9 of the control plane under three writers: kills", "kills", float64(rounds))
	r.Add("writes acknowledged", "writes", float64(count))
	r.AddTarget("acknowledged writes lost", "writes", float64(lost), "0", lost == 0)
	r.Add("start to first answer, median", "s", report.Quantile(starts, 0.5))
	r.Add("start to first answer, longest", "s", starts[len(starts)-1])
	if err := r.Write(os.Stdout, file); err != nil {
		t.Fatal(err)
	}
}
