package functions

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	// keepIdle is how many finished entries of a kind stay besides those in use.
	keepIdle = 20
	// What failed is tried again after such a time when nothing of it has changed,
	// for the network may have been the cause.
	retryMake, retryMakeMost = 30 * time.Second, 10 * time.Minute
)

// cacheStore is one folder of the cache, whose entries are named by what they are
// made of and never change. Layout: {dir}/{name}/src and, when finished, /done. An
// entry that is used by a generation stays; of the others the oldest go.
type cacheStore struct {
	dir string
	// turn is held while something is made: one at a time, for it takes all cores.
	turn chan struct{}
	// forgets failures: what is cheap to try is tried whenever it is asked for.
	forgets bool

	mu       sync.Mutex
	used     map[string]int
	failures map[string]failedMake
}

type failedMake struct {
	err   error
	again time.Time
	pause time.Duration
}

func newCacheStore(dir string, turn chan struct{}) *cacheStore {
	return &cacheStore{dir: dir, turn: turn, used: map[string]int{}, failures: map[string]failedMake{}}
}

// get returns the folder of an entry, which fill fills when there is none yet, and
// what gives it back.
func (c *cacheStore) get(ctx context.Context, name string, fill func(ctx context.Context, dir string) error) (dir string, release func(), err error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return "", nil, ctx.Err()
	}
	home := filepath.Join(c.dir, name)
	dir = filepath.Join(home, "src")
	if _, err := os.Stat(filepath.Join(home, "done")); err != nil {
		if err := c.failed(name); err != nil {
			return "", nil, err
		}
		err := c.add(ctx, home, fill)
		if ctx.Err() == nil && !c.forgets {
			c.note(name, err)
		}
		if err != nil {
			_ = removeTree(home)
			return "", nil, err
		}
	}
	now := time.Now()
	_ = os.Chtimes(filepath.Join(home, "done"), now, now) // prune goes by the last use
	c.mu.Lock()
	c.used[name]++
	c.mu.Unlock()
	c.prune()
	return dir, sync.OnceFunc(func() { c.release(name) }), nil
}

func (c *cacheStore) add(ctx context.Context, home string, fill func(context.Context, string) error) error {
	if err := removeTree(home); err != nil { // what a killed runner left
		return err
	}
	dir := filepath.Join(home, "src")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("functions cache: %w", err)
	}
	if err := fill(ctx, dir); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(home, "done"), nil, 0o644)
}

func (c *cacheStore) release(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used[name]--; c.used[name] <= 0 {
		delete(c.used, name)
	}
}

// failed returns the error of what need not be tried again yet.
func (c *cacheStore) failed(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.failures[name]; ok && time.Now().Before(f.again) {
		return f.err
	}
	return nil
}

func (c *cacheStore) note(name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.failures, name)
		return
	}
	if len(c.failures) > 1000 {
		clear(c.failures)
	}
	pause := min(max(2*c.failures[name].pause, retryMake), retryMakeMost)
	c.failures[name] = failedMake{err: err, again: time.Now().Add(pause), pause: pause}
}

// prune removes the oldest entries that nobody uses.
func (c *cacheStore) prune() {
	entries, _ := os.ReadDir(c.dir)
	type idle struct {
		name string
		used time.Time
	}
	var all []idle
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(c.dir, e.Name(), "done"))
		if err == nil && c.used[e.Name()] == 0 {
			all = append(all, idle{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(x, y idle) int { return cmp.Or(y.used.Compare(x.used), cmp.Compare(x.name, y.name)) })
	for _, x := range all[min(keepIdle, len(all)):] {
		_ = removeTree(filepath.Join(c.dir, x.name))
	}
}
