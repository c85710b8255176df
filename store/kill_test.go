package store_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// childEnv makes the test binary commit to the store in the directory it names.
const childEnv = "PENSTOCK_STORE_CHILD"

// The child commits two groups: the few in one transaction each time, the many,
// which need several, each fourth time. The values of a group always agree.
const (
	fewRoutes      = 8
	manyRoutes     = 200
	firstManyRoute = 100
)

// commitForever is the child: it tells of each acknowledged commit on stdout.
func commitForever(dir string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx := context.Background()
	s, err := store.Open(ctx, store.Options{DataDir: dir, SealKey: sealKey, Logger: quiet})
	if err != nil {
		fail(err)
	}
	rev, err := s.Head(ctx)
	if err != nil {
		fail(err)
	}
	for {
		value := fmt.Sprintf("p%d-v%d", os.Getpid(), rev.Number+1)
		changes := storetest.Routes(0, fewRoutes, value)
		if rev.Number%4 == 3 {
			changes = append(changes, storetest.Routes(firstManyRoute, manyRoutes, value)...)
		}
		if rev, err = s.Commit(ctx, rev.Number, changes, store.Info{Message: value}); err != nil {
			fail(err)
		}
		fmt.Println(rev.Number, value)
	}
}

// TestKill kills a committing process with SIGKILL again and again: no acknowledged
// commit is lost, at most one that was not acknowledged is there, and each is whole.
// PENSTOCK_KILL_ROUNDS is how often, PENSTOCK_KILL_SEED makes the moments.
func TestKill(t *testing.T) {
	t.Parallel()
	rounds := envInt(t, "PENSTOCK_KILL_ROUNDS", 8)
	seed := envInt(t, "PENSTOCK_KILL_SEED", 1)
	rnd := rand.New(rand.NewPCG(uint64(seed), 0))
	dir := t.TempDir()
	acked := map[int64]string{}
	var last int64
	for round := range rounds {
		for number, value := range killedChild(t, dir, 1+rnd.IntN(40), time.Duration(rnd.IntN(8000))*time.Microsecond) {
			acked[number] = value
			last = max(last, number)
		}
		last = checkAfterKill(t, dir, acked, last)
		t.Logf("round %d: %d acknowledged, head %d", round, len(acked), last)
	}
}

// envInt reads a number from the environment.
func envInt(t *testing.T, name string, def int) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv(name), strconv.Itoa(def)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// killedChild runs a child until it has acknowledged some commits, kills it a little
// later, and returns all that it acknowledged.
func killedChild(t *testing.T, dir string, after int, delay time.Duration) map[int64]string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := map[int64]string{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var number int64
		var value string
		if _, err := fmt.Sscan(lines.Text(), &number, &value); err != nil {
			break // cut off by the kill
		}
		acked[number] = value
		if len(acked) == after {
			time.AfterFunc(delay, func() { _ = cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); len(acked) < after {
		t.Fatalf("the child ended by itself after %d commits: %v", len(acked), err)
	}
	return acked
}

// checkAfterKill opens the store, checks it against what was acknowledged, and
// returns the head.
func checkAfterKill(t *testing.T, dir string, acked map[int64]string, last int64) int64 {
	t.Helper()
	s := openEmbedded(t, dir)
	head, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if head.Number < last || head.Number > last+1 {
		t.Fatalf("head is %d, %d was acknowledged", head.Number, last)
	}
	for number := max(1, last-50); number <= head.Number; number++ {
		rev, err := s.Get(t.Context(), number)
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := acked[number]; ok && rev.Message != want {
			t.Fatalf("revision %d is %q, %q was acknowledged", number, rev.Message, want)
		}
		list, err := s.Load(t.Context(), number)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != rev.Resources {
			t.Fatalf("revision %d: %d resources, want %d", number, len(list), rev.Resources)
		}
		for i, r := range list {
			want := rev.Message
			if i >= fewRoutes { // the group of many, whenever it was last set
				want = storetest.Value(list[fewRoutes])
			}
			if got := storetest.Value(r); got != want {
				t.Fatalf("revision %d: %s is %q, want %q", number, r.GetRoute().GetName(), got, want)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return head.Number
}
