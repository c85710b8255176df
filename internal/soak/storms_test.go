package soak

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/bench/report"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/launch"
)

// storms are how hard: a short form with the other tests, a long one for `make soak` and
// `make bench-storms`, which has PENSTOCK_STORMS name the file of the figures.
func stormKills() int {
	if os.Getenv("PENSTOCK_SOAK") == "1" || os.Getenv("PENSTOCK_STORMS") != "" {
		return 30
	}
	return 4
}

// victim is a server in a process of its own, which keeps its port when it is started
// again.
type victim struct {
	id      string
	port    int
	process *exec.Cmd
}

func newVictim(t *testing.T, id string) *victim {
	t.Helper()
	v := &victim{id: id, port: envoytest.FreePort(t)}
	v.start(t)
	t.Cleanup(func() { v.kill() })
	return v
}

func (v *victim) start(t *testing.T) {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	v.process = exec.Command(binary)
	v.process.Env = append(os.Environ(), "SOAK_AS=victim", "SOAK_ID="+v.id, fmt.Sprintf("PORT=%d", v.port))
	if err := launch.Start(v.process); err != nil {
		t.Fatal(err)
	}
	waitFor(t, v.id+" to listen", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", v.port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (v *victim) kill() {
	_ = v.process.Process.Kill()
	_ = v.process.Wait()
}

// serveVictim says who it is: SOAK_ID, or something of its own; at /executed, the POSTs that
// it has executed.
func serveVictim() {
	id := cmp.Or(os.Getenv("SOAK_ID"), fmt.Sprint(rand.Uint64()))
	var mu sync.Mutex
	var executed []string
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.URL.Path == "/executed":
			fmt.Fprint(w, strings.Join(executed, "\n"))
			return
		case r.Method == http.MethodPost:
			executed = append(executed, r.Header.Get("X-Nonce"))
		}
		fmt.Fprint(w, id)
	})))
}

// inFlight bounds the requests of a storm that wait at once: well below what an instance
// takes, so that on a machine that is busy with other things none is refused for want of room.
const inFlight = 64

// storm is a load at an even rate, each request on its own, and what became of them.
type storm struct {
	sent, lost atomic.Int64
	posts      int64        // every so many requests is a POST; 0: none
	told       atomic.Int64 // POSTs that were answered with 504
	mu         sync.Mutex
	by         map[string]int64 // answers, by who gave them
	took       []time.Duration  // by GETs
	losses     []string
	wait       func()
}

func newStorm(t *testing.T, address string, every time.Duration, posts int64) *storm {
	s := &storm{by: map[string]int64{}, posts: posts}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}, Timeout: patience}
	wg.Go(func() {
		pace := time.NewTicker(every)
		defer pace.Stop()
		slots := make(chan struct{}, inFlight)
		for {
			select {
			case <-ctx.Done():
				return
			case <-pace.C:
			}
			select {
			case <-ctx.Done():
				return
			case slots <- struct{}{}:
				wg.Go(func() { s.once(client, address); <-slots })
			}
		}
	})
	s.wait = sync.OnceFunc(func() { cancel(); wg.Wait(); client.CloseIdleConnections() })
	t.Cleanup(s.wait)
	return s
}

func (s *storm) once(c *http.Client, address string) {
	n := s.sent.Add(1)
	method := http.MethodGet
	if s.posts > 0 && n%s.posts == 0 {
		method = http.MethodPost
	}
	req, err := http.NewRequest(method, "http://"+address+"/", nil)
	if err != nil {
		panic(err) // a constant
	}
	req.Header.Set("X-Nonce", strconv.FormatInt(n, 10))
	began := time.Now()
	res, err := c.Do(req)
	body := []byte{}
	if err == nil {
		body, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if method == http.MethodGet {
		s.took = append(s.took, time.Since(began))
	}
	switch {
	case err == nil && res.StatusCode == http.StatusOK:
		s.by[string(body)]++
		return
	case err == nil && res.StatusCode == http.StatusGatewayTimeout && method == http.MethodPost:
		s.told.Add(1)
		return
	}
	if s.lost.Add(1) <= 10 {
		status := 0
		if res != nil {
			status = res.StatusCode
		}
		s.losses = append(s.losses, fmt.Sprintf("%d %.120s %v", status, body, err))
	}
}

// answers is how many one has given.
func (s *storm) answers(id string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[id]
}

// servers is how many have answered.
func (s *storm) servers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.by)
}

// pass waits for n more answers of one of them.
func (s *storm) pass(t *testing.T, id string, n int64) {
	t.Helper()
	goal := s.answers(id) + n
	waitFor(t, "answers of "+id, func() bool { return s.answers(id) >= goal })
}

// end judges: nothing may be lost.
func (s *storm) end(t *testing.T, r *report.Report, what string) {
	t.Helper()
	s.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.took)
	p99 := s.took[len(s.took)*99/100]
	slow, _ := slices.BinarySearch(s.took, time.Second)
	slow = len(s.took) - slow
	t.Logf("%s: %d requests, %d lost, p99 of GETs %s, the slowest %s, %d of %d over a second, %d POSTs answered with 504",
		what, s.sent.Load(), s.lost.Load(), p99.Round(time.Millisecond), s.took[len(s.took)-1].Round(time.Millisecond), slow, len(s.took), s.told.Load())
	if s.lost.Load() > 0 {
		t.Errorf("%s: %d requests were lost beside a healthy endpoint: %s", what, s.lost.Load(), strings.Join(s.losses, "; "))
	}
	if r != nil {
		r.Add(what+": requests", "requests", float64(s.sent.Load()))
		r.AddTarget(what+": lost", "requests", float64(s.lost.Load()), "0", s.lost.Load() == 0)
		r.Add(what+": p99 of GETs", "ms", float64(p99.Microseconds())/1000)
		if s.posts > 0 {
			r.Add(what+": GETs over a second", "%", float64(slow)/float64(len(s.took))*100)
			r.Add(what+": the slowest GET", "ms", float64(s.took[len(s.took)-1].Microseconds())/1000)
			r.Add(what+": POSTs answered with 504", "requests", float64(s.told.Load()))
		}
	}
}

// stormPlane is a control plane with a route to a backend of some victims.
func stormPlane(t *testing.T, balancing, policies string, n int) (address string, victims []*victim) {
	t.Helper()
	p := newPlane(t)
	var endpoints []string
	for i := range n {
		v := newVictim(t, fmt.Sprintf("v%d", i))
		victims = append(victims, v)
		endpoints = append(endpoints, fmt.Sprintf("{address: 127.0.0.1, port: %d}", v.port))
	}
	port := envoytest.FreePort(t)
	p.apply(t, fmt.Sprintf(`kind: Backend
name: storm
load_balancing: %s
static: {endpoints: [%s]}
---
kind: Gateway
name: storm
listeners: [{name: http, address: 127.0.0.1, port: %d}]
---
kind: Route
name: storm
gateways: [storm]
hostnames: ["*"]
rules: [{forward: {backends: [{backend: storm}]}}]
policies: {%s}
`, balancing, strings.Join(endpoints, ", "), port, policies))
	p.envoy.WaitLive(t)
	return fmt.Sprintf("127.0.0.1:%d", port), victims
}

// TestStorms: no idempotent request is lost beside a healthy endpoint.
func TestStorms(t *testing.T) {
	var figures *report.Report
	if path := os.Getenv("PENSTOCK_STORMS"); path != "" {
		figures = report.New()
		defer func() {
			if err := figures.Write(os.Stdout, path); err != nil {
				t.Error(err)
			}
		}()
	}
	for _, balancing := range []string{"LEAST_REQUEST", "ROUND_ROBIN", "RANDOM"} {
		for _, n := range []int{2, 3} {
			what := fmt.Sprintf("kill -9, %s, %d endpoints", balancing, n)
			t.Run(what, func(t *testing.T) { killStorm(t, figures, what, balancing, n) })
		}
	}
	t.Run("hung", func(t *testing.T) { hungStorm(t, figures) })
	t.Run("functions", func(t *testing.T) { functionStorm(t, figures) })
}

// killStorm kills one endpoint after another; the next one when the one before serves
// again.
func killStorm(t *testing.T, figures *report.Report, what, balancing string, n int) {
	address, victims := stormPlane(t, balancing, "", n)
	s := newStorm(t, address, 2*time.Millisecond, 0)
	for k := range stormKills() {
		v, other := victims[k%n], victims[(k+1)%n]
		s.pass(t, v.id, 20)
		v.kill()
		s.pass(t, other.id, 50)
		v.start(t)
		s.pass(t, v.id, 1)
	}
	s.end(t, figures, what)
}

// hungStorm stops one of three endpoints, which goes on taking connections: no GET is lost, and
// a POST that began there is answered with 504 and executed by nobody else.
func hungStorm(t *testing.T, figures *report.Report) {
	policies, pause, requests := "timeout: {request: 0.5s}", 4*time.Millisecond, int64(400)
	if figures != nil {
		policies, pause, requests = "", 10*time.Millisecond, 4000
	}
	address, victims := stormPlane(t, "LEAST_REQUEST", policies, 3)
	s := newStorm(t, address, pause, 4)
	for _, v := range victims {
		s.pass(t, v.id, 5)
	}
	stopped := victims[0].process.Process
	if err := stopped.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goal := s.sent.Load() + requests
	waitFor(t, "requests beside the one that hangs", func() bool { return s.sent.Load() >= goal })
	if err := stopped.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.end(t, figures, "SIGSTOP, 3 endpoints")
	by := map[string]string{}
	for _, v := range victims {
		res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/executed", v.port))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, nonce := range strings.Fields(string(b)) {
			if other := by[nonce]; other != "" {
				t.Errorf("POST %s was executed by %s and by %s", nonce, other, v.id)
			}
			by[nonce] = v.id
		}
	}
}

// functionStorm kills the instances of a function that has two, one after another: the
// other one answers, and the one that was killed comes back however often it happens.
func functionStorm(t *testing.T, figures *report.Report) {
	p := newPlane(t)
	startRunner(t, p)
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	port := envoytest.FreePort(t)
	waitFor(t, "the runner to connect", func() bool {
		st, err := p.core.Status(t.Context())
		return err == nil && len(st.GetRunners()) == 1
	})
	p.apply(t, fmt.Sprintf(`kind: Function
name: storm
source: f
instances: 2
env: {SOAK_AS: victim}
server: {command: [%q]}
---
kind: Gateway
name: storm
listeners: [{name: http, address: 127.0.0.1, port: %d}]
---
kind: Route
name: storm
gateways: [storm]
hostnames: ["*"]
rules: [{forward: {backends: [{backend: functions/storm}]}}]
`, binary, port))
	two := func() (list []*pb.Instance) {
		waitFor(t, "two instances", func() bool { list = p.instances(t, "storm"); return len(list) == 2 })
		return list
	}
	two()
	s := newStorm(t, fmt.Sprintf("127.0.0.1:%d", port), 5*time.Millisecond, 0)
	for kill := range 4 * stormKills() {
		// Both serve, and Envoy knows of both.
		waitFor(t, "an answer of each instance so far", func() bool { return s.servers() >= kill+2 })
		pid := two()[rand.IntN(2)].GetPid()
		_ = syscall.Kill(int(pid), syscall.SIGKILL)
		waitFor(t, "the end to be noticed", func() bool {
			return !slices.ContainsFunc(p.instances(t, "storm"), func(i *pb.Instance) bool { return i.GetPid() == pid })
		})
	}
	s.end(t, figures, "kill -9 of an instance, instances: 2")
}
