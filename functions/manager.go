package functions

import (
	"context"
	"crypto/sha256"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/runtime/lambda"
)

// manager holds the wanted functions and their instances.
//
// Each version of a function is a generation. A new generation is started beside
// the old ones, and only when all of its instances are ready do the old ones
// drain: a version that cannot start never takes away one that serves.
type manager struct {
	config  Config
	metrics *instance.Metrics
	root    *os.Root
	builder *builder
	// changed has a value when state may have changed.
	changed chan struct{}

	mu        sync.Mutex
	functions map[string]*function
	stopped   bool
	// running are the slots and preparations whose goroutines have not ended.
	running sync.WaitGroup
}

// function is one function by name, with its generations from old to new.
type function struct {
	name        string
	generations []*generation
}

// current is the wanted generation; nil when the function was removed.
func (f *function) current() *generation {
	if n := len(f.generations); n > 0 && !f.generations[n-1].retired {
		return f.generations[n-1]
	}
	return nil
}

func newManager(c Config, metrics *instance.Metrics) (*manager, error) {
	root, err := os.OpenRoot(c.Root)
	if err != nil {
		return nil, err
	}
	m := &manager{
		config: c, metrics: metrics, root: root, builder: newBuilder(root, c.CacheDir, c.Logger),
		changed: make(chan struct{}, 1), functions: map[string]*function{},
	}
	if c.LambdaPythonPath != "" {
		m.running.Go(m.compile)
	}
	return m, nil
}

// compile prepares awslambdaric beside all else.
func (m *manager) compile() {
	ctx, cancel := context.WithTimeout(m.builder.ctx, time.Minute)
	defer cancel()
	if err := lambda.Compile(ctx, lambda.Options{Python: m.config.Python, PythonPath: m.config.LambdaPythonPath}); err != nil {
		m.config.Logger.Debug("Python functions start a little slower", "error", err)
	}
}

func (m *manager) close() { m.root.Close() }

// notify tells that state may have changed.
func (m *manager) notify() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// key identifies what an instance runs: all of a function but what does not
// concern a running instance.
func key(f *pb.Function) [sha256.Size]byte {
	c := proto.CloneOf(f)
	c.Metadata, c.Status, c.Instances = nil, nil, 0
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	return sha256.Sum256(b)
}

// apply makes the wanted functions the given ones.
func (m *manager) apply(wanted []*pb.Function) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return
	}
	names := map[string]bool{}
	for _, w := range wanted {
		names[w.GetName()] = true
		m.applyOne(w)
	}
	for name, f := range m.functions {
		if names[name] {
			continue
		}
		if f.current() != nil {
			m.config.Logger.Info("function is removed", "function", name)
		}
		for _, g := range f.generations {
			g.retire()
		}
	}
	m.collect()
	m.notify()
}

func (m *manager) applyOne(w *pb.Function) {
	f := m.functions[w.GetName()]
	if f == nil {
		f = &function{name: w.GetName()}
		m.functions[w.GetName()] = f
	}
	count := max(int(w.GetInstances()), 1)
	k := key(w)
	if g := f.current(); g != nil && g.key == k {
		g.scale(count)
		m.settle(f)
		return
	}
	m.config.Logger.Info("function is wanted", "function", w.GetName(), "instances", count, "version", len(f.generations)+1)
	g := newGeneration(m, f, w, k, count)
	f.generations = append(f.generations, g)
	// A version between that never became whole is not needed any more.
	for _, old := range f.generations[:len(f.generations)-1] {
		if !old.whole {
			old.retire()
		}
	}
	m.running.Go(g.prepare)
}

// settle retires the old generations of a function whose newest is whole. The
// caller holds mu.
func (m *manager) settle(f *function) {
	g := f.current()
	if g == nil || g.readyCount() < g.want {
		return
	}
	g.whole = true
	for _, old := range f.generations {
		if old != g {
			old.retire()
		}
	}
}

// collect forgets generations that have no slots left, and functions without
// generations. The caller holds mu.
func (m *manager) collect() {
	for name, f := range m.functions {
		f.generations = slices.DeleteFunc(f.generations, func(g *generation) bool {
			if g.retired && len(g.slots) == 0 && g.prepared {
				m.builder.release(g.build)
				return true
			}
			return false
		})
		if len(f.generations) == 0 {
			delete(m.functions, name)
			m.metrics.Forget(name)
		}
	}
}

// state is what the control plane is told: all instances, sorted, and the
// functions that cannot be run.
func (m *manager) state() *pb.RunnerState {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &pb.RunnerState{Problems: map[string]string{}}
	for _, f := range m.functions {
		for _, g := range f.generations {
			for _, s := range g.slots {
				out.Instances = append(out.Instances, s.report()...)
			}
		}
		if g := f.current(); g != nil {
			if why := g.trouble(); why != "" {
				out.Problems[f.name] = why
			}
		}
	}
	slices.SortFunc(out.Instances, func(a, b *pb.Instance) int {
		if c := strings.Compare(a.GetFunction(), b.GetFunction()); c != 0 {
			return c
		}
		return strings.Compare(a.GetId(), b.GetId())
	})
	return out
}

// drainOptions say how an instance of a function is taken out of service while
// the runner goes on.
func (m *manager) drainOptions(timeout time.Duration) instance.DrainOptions {
	return instance.DrainOptions{Grace: m.config.DrainGrace, Limit: m.config.DrainGrace + timeout + time.Second}
}

// stop drains everything, within the stop timeout, and returns when no process is
// left. Without a control plane nobody tells the proxies to close connections, so
// idle ones are closed.
func (m *manager) stop(connected bool) {
	m.mu.Lock()
	m.stopped = true
	o := instance.DrainOptions{Limit: m.config.StopTimeout, Grace: min(m.config.DrainGrace, 200*time.Millisecond), CutIdle: !connected}
	for _, f := range m.functions {
		for _, g := range f.generations {
			g.retireWith(o)
		}
	}
	m.mu.Unlock()
	m.notify()
	m.builder.stop()

	done := make(chan struct{})
	go func() { m.running.Wait(); close(done) }()
	select {
	case <-done:
		m.notify()
		return
	case <-time.After(m.config.StopTimeout + 2*time.Second):
	}
	m.mu.Lock()
	for _, f := range m.functions {
		for _, g := range f.generations {
			for _, s := range g.slots {
				s.cut()
			}
		}
	}
	m.mu.Unlock()
	<-done
	m.notify()
}
