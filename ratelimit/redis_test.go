package ratelimit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/penstock-gateway/penstock/internal/redistest"
)

// newRedis opens a backend on a server. Timeouts are long: the machine of the test
// may be loaded, and a late answer is not a failure.
func newRedis(t testing.TB, s *redistest.Server, o RedisOptions) *Redis {
	t.Helper()
	if o.URL == "" {
		o.URL = s.URL()
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r, err := NewRedis(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestRedisDecides(t *testing.T) {
	server := redistest.Start(t)
	for name, decide := range decideCases {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			decide(t, c, newRedis(t, server, RedisOptions{Prefix: ":" + name + ":", now: c.us.Load}))
		})
	}
}

// TestBackendsAgree: memory and Redis give the same results, bit for bit, on
// random sequences of requests over random limits.
func TestBackendsAgree(t *testing.T) {
	server := redistest.Start(t)
	c := newClock()
	r := newRedis(t, server, RedisOptions{now: c.us.Load})
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		m := NewMemory(MemoryOptions{Now: c.now})
		specs := make([]Spec, rapid.IntRange(1, 4).Draw(t, "limits"))
		for i := range specs {
			l := drawLimit(t)
			specs[i] = Spec{
				ID: fmt.Sprintf("%d-%d", run, i), Requests: uint32(l.requests), Window: micros(l.window), Shadow: rapid.IntRange(0, 4).Draw(t, "shadow") == 0,
			}
			if l.fixed {
				specs[i].Algorithm = FixedWindow
			} else {
				specs[i].Burst = uint32(l.burst)
			}
		}
		for range rapid.IntRange(1, 15).Draw(t, "requests") {
			c.us.Add(drawStep(t, specs[rapid.IntRange(0, len(specs)-1).Draw(t, "pace")].limit()) % (1 << 42))
			requests := make([]Request, rapid.IntRange(1, 5).Draw(t, "descriptors"))
			for i := range requests {
				s := specs[rapid.IntRange(0, len(specs)-1).Draw(t, "limit")]
				cost := rapid.OneOf(rapid.Uint32Range(0, 3), rapid.Uint32Range(0, s.Limit())).Draw(t, "cost")
				requests[i] = Request{Key: s.ID, Spec: s, Cost: cost}
			}
			want, err := m.Decide(context.Background(), requests)
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.Decide(context.Background(), requests)
			if err != nil {
				t.Fatal(err)
			}
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("limit %d of %+v: memory %+v, Redis %+v", i, requests, want[i], got[i])
				}
			}
		}
	})
}

// TestBatchIsSequence: requests that are coalesced into one script call get what
// they would get one after the other.
func TestBatchIsSequence(t *testing.T) {
	server := redistest.Start(t)
	c := newClock()
	r := newRedis(t, server, RedisOptions{now: c.us.Load})
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		m := NewMemory(MemoryOptions{Now: c.now})
		for range 3 {
			c.us.Add(rapid.Int64Range(0, 3_000_000).Draw(t, "step"))
			var batch []*call
			for range rapid.IntRange(1, 12).Draw(t, "requests") {
				call := &call{ready: make(chan struct{})}
				for range rapid.IntRange(1, 4).Draw(t, "descriptors") {
					n := rapid.Uint32Range(1, 4).Draw(t, "limit")
					s := Spec{ID: fmt.Sprintf("%d-%d", run, n), Requests: n, Window: time.Second, Burst: n + 1, Shadow: n == 4}
					call.requests = append(call.requests, Request{Key: s.ID, Spec: s, Cost: rapid.Uint32Range(0, 2).Draw(t, "cost")})
				}
				batch = append(batch, call)
			}
			r.decide(context.Background(), batch)
			for i, call := range batch {
				want, err := m.Decide(context.Background(), call.requests)
				if err != nil || call.err != nil {
					t.Fatal(err, call.err)
				}
				for j := range want {
					if call.results[j] != want[j] {
						t.Fatalf("request %d, limit %d of %+v: in a batch %+v, alone %+v", i, j, call.requests, call.results[j], want[j])
					}
				}
			}
		}
	})
}

// TestRedisShared: two limiters that decide at the same time share one count,
// exactly, whatever is coalesced into one script call.
func TestRedisShared(t *testing.T) {
	server := redistest.Start(t)
	var batches, largest atomic.Int64
	onBatch := func(n int) {
		batches.Add(1)
		for {
			old := largest.Load()
			if int64(n) <= old || largest.CompareAndSwap(old, int64(n)) {
				return
			}
		}
	}
	backends := []*Redis{newRedis(t, server, RedisOptions{OnBatch: onBatch}), newRedis(t, server, RedisOptions{OnBatch: onBatch})}
	narrow, wide := gcra("narrow", 500, 24*time.Hour), gcra("wide", 1000, 24*time.Hour)
	wide.Algorithm = FixedWindow
	wide.Window = MaxWindow
	requests := []Request{{"narrow", narrow, 1}, {"wide", wide, 1}}
	const goroutines, each = 64, 25
	var passed atomic.Int64
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			for range each {
				res, err := backends[i%2].Decide(context.Background(), requests)
				if err != nil {
					t.Error(err)
					return
				}
				if !refuses(requests, res) {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if passed.Load() != 500 {
		t.Errorf("%d requests passed a limit of 500", passed.Load())
	}
	if left := remaining(t, backends[0], wide); left != 500 {
		t.Errorf("the other limit has %d left, want 500: refused requests were counted", left)
	}
	if batches.Load() >= goroutines*each || largest.Load() < 2 {
		t.Errorf("%d calls for %d requests, at most %d together: nothing is coalesced", batches.Load(), goroutines*each, largest.Load())
	}
}

func TestRedisExpiry(t *testing.T) {
	server := redistest.Start(t)
	r := newRedis(t, server, RedisOptions{})
	mustDecide(t, r, one(gcra("minute", 5, time.Minute)))
	fixed := gcra("fixed", 5, time.Hour)
	fixed.Algorithm = FixedWindow
	mustDecide(t, r, one(fixed))
	mustDecide(t, r, one(Spec{ID: "ages", Requests: 1, Window: MaxWindow, Burst: MaxRequests}))
	remaining(t, r, gcra("only asked", 5, time.Minute))
	ttl := func(key string) (ms int64) {
		t.Helper()
		if _, err := fmt.Sscanf(server.Do(t, "PTTL", hashTag+":rl:"+key), ":%d", &ms); err != nil {
			t.Fatal(err)
		}
		return ms
	}
	if ms := ttl("minute"); ms < 1_000 || ms > 13_001 {
		t.Errorf("one of 5 a minute is remembered for %d ms, want about 12 s", ms)
	}
	if ms := ttl("fixed"); ms < 1 || ms > 3_602_000 {
		t.Errorf("a window of an hour is remembered for %d ms", ms)
	}
	if ms := ttl("ages"); ms < 1_000 {
		t.Errorf("a year is remembered for %d ms", ms)
	}
	if ms := ttl("only asked"); ms != -2 {
		t.Errorf("a question left a key, for %d ms", ms)
	}
}

// TestRedisForeignValues: what is stored under our keys and is none of ours counts
// as nothing, and is replaced or reported, not obeyed.
func TestRedisForeignValues(t *testing.T) {
	server := redistest.Start(t)
	r := newRedis(t, server, RedisOptions{})
	server.Do(t, "SET", hashTag+":rl:text", "rubbish")
	server.Do(t, "RPUSH", hashTag+":rl:list", "rubbish")
	for _, key := range []string{"text", "list"} {
		if res := mustDecide(t, r, one(gcra(key, 5, time.Minute))); !res[0].Allowed || res[0].Remaining != 4 {
			t.Errorf("%s: %+v", key, res)
		}
		if left := remaining(t, r, gcra(key, 5, time.Minute)); left != 4 {
			t.Errorf("%s: %d left", key, left)
		}
	}
}

// TestRedisDies: while Redis is away requests fail at once, and when it is back
// they are counted again, without anybody's help.
func TestRedisDies(t *testing.T) {
	server := redistest.Start(t)
	var logged bytes.Buffer
	var mu sync.Mutex
	r := newRedis(t, server, RedisOptions{Timeout: time.Second, Logger: slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return logged.Write(b)
	}), nil))})
	s := gcra("x", 5, time.Hour)
	mustDecide(t, r, one(s))

	server.Kill()
	eventually(t, "the breaker to open", func() bool {
		_, err := r.Decide(t.Context(), one(s))
		if err != nil && !errors.Is(err, ErrUnavailable) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
		return !r.Up()
	})
	failures := r.Failures()
	for range 100 {
		if _, err := r.Decide(t.Context(), one(s)); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
	}
	if r.Failures() != failures {
		t.Error("requests ask Redis although the breaker is open")
	}

	server.Restart(t)
	eventually(t, "Redis to be asked again", r.Up)
	if res := mustDecide(t, r, one(s)); !res[0].Allowed || res[0].Remaining != 4 {
		t.Errorf("after the restart, empty and without the script: %+v", res)
	}
	mu.Lock()
	defer mu.Unlock()
	if text := logged.String(); strings.Count(text, "fails") != 1 || strings.Count(text, "answers again") != 1 {
		t.Errorf("logged:\n%s", text)
	}
}

// TestRedisHangs: a Redis that keeps its connections and does not answer costs a
// request no more than the timeout, and later requests nothing.
func TestRedisHangs(t *testing.T) {
	server := redistest.Start(t)
	r := newRedis(t, server, RedisOptions{Timeout: 100 * time.Millisecond})
	s := gcra("x", 5, time.Hour)
	eventually(t, "a decision", func() bool { _, err := r.Decide(t.Context(), one(s)); return err == nil })
	server.Pause(t)
	for range tripAfter {
		if _, err := r.Decide(t.Context(), one(s)); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
	}
	if r.Up() {
		t.Error("the breaker is closed after failures in a row")
	}
	// A caller that waits less than the timeout gets its own error.
	server.Resume(t)
	eventually(t, "Redis to be asked again", r.Up)
	server.Pause(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := r.Decide(ctx, one(s)); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	server.Resume(t)
}

// TestRedisReadOnly: a replica answers PING and reads; it is not taken for a Redis
// that works.
func TestRedisReadOnly(t *testing.T) {
	primary, replica := redistest.Start(t), redistest.Start(t)
	host, port, _ := strings.Cut(primary.Address, ":")
	replica.Do(t, "REPLICAOF", host, port)
	r := newRedis(t, replica, RedisOptions{})
	eventually(t, "the probe to find out", func() bool { return !r.Up() })
	replica.Do(t, "REPLICAOF", "NO", "ONE")
	eventually(t, "the promoted replica to be asked", r.Up)
	mustDecide(t, r, one(gcra("x", 5, time.Minute)))
}

func TestRedisAbsentAtStart(t *testing.T) {
	server := redistest.Start(t)
	server.Kill()
	r := newRedis(t, server, RedisOptions{Timeout: time.Second})
	eventually(t, "the probe to find out", func() bool { return !r.Up() })
	server.Restart(t)
	eventually(t, "Redis to be asked", r.Up)
	mustDecide(t, r, one(gcra("x", 5, time.Minute)))
}

func TestRedisCluster(t *testing.T) {
	server := redistest.Start(t, "--cluster-enabled", "yes")
	server.Do(t, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
	eventually(t, "the cluster", func() bool { return strings.Contains(server.Do(t, "CLUSTER", "INFO"), "cluster_state:ok") })
	r := newRedis(t, server, RedisOptions{Cluster: true, URL: "redis://" + server.Address})
	all := make([]Request, 8)
	for i := range all {
		s := gcra(fmt.Sprint("limit", i), 2, time.Hour)
		all[i] = Request{Key: s.ID, Spec: s, Cost: 1}
	}
	eventually(t, "the cluster's client", r.Up)
	for i := range 3 {
		if r := mustDecide(t, r, all); refuses(all, r) != (i == 2) {
			t.Errorf("request %d: %+v", i, r)
		}
	}
}

func TestRedisClosed(t *testing.T) {
	server := redistest.Start(t)
	r, err := NewRedis(RedisOptions{URL: server.URL(), Timeout: 10 * time.Second, Logger: silent})
	if err != nil {
		t.Fatal(err)
	}
	mustDecide(t, r, one(gcra("x", 5, time.Minute)))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Decide(t.Context(), one(gcra("x", 5, time.Minute))); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

// TestRedisBatchBounds: more limits than one script call takes are split, and none
// is forgotten.
func TestRedisBatchBounds(t *testing.T) {
	server := redistest.Start(t)
	r := newRedis(t, server, RedisOptions{})
	s := Spec{ID: "x", Name: "x", Requests: 1_000_000, Window: MaxWindow, Algorithm: FixedWindow}
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			requests := make([]Request, 20)
			for j := range requests {
				requests[j] = Request{Key: fmt.Sprintf("k%d", (i+j)%50), Spec: s, Cost: 1}
			}
			if _, err := r.Decide(context.Background(), requests); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	total := uint32(0)
	for k := range 50 {
		res := mustDecide(t, r, []Request{{Key: fmt.Sprintf("k%d", k), Spec: s}})
		total += 1_000_000 - res[0].Remaining
	}
	if total != 8000 {
		t.Errorf("%d were counted, want 8000", total)
	}
	if _, err := r.Decide(t.Context(), make([]Request, maxBatchLimits+1)); err == nil {
		t.Error("more limits than a script call takes are accepted")
	}
}

func TestRedisBadURL(t *testing.T) {
	for _, c := range []struct{ url, want string }{
		{"127.0.0.1:6379", "Redis URL"},
		{"http://127.0.0.1", "invalid URL scheme"},
		{"redis://user:secret@host:6379/x", "invalid database number"},
		{"redis://:secret@ho st/0", "invalid character"},
	} {
		_, err := NewRedis(RedisOptions{URL: c.url})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.url, err, c.want)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	if _, err := NewRedis(RedisOptions{URL: "http://:secret@host", Cluster: true}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("cluster: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
