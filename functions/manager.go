package functions

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/activate"
	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/runtime/lambda"
	"github.com/penstock-gateway/penstock/functions/spans"
	"github.com/penstock-gateway/penstock/internal/signal"
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
	// interpreters run Python and Node.js functions.
	interpreters bringers
	// sources are where builds get what they need from.
	sources     registries
	compileOnce sync.Once // of awslambdaric
	// changed has a value when state may have changed.
	changed signal.Wake
	// live tells that there is a stream to the control plane.
	live       atomic.Bool
	logs       *logbook
	sampler    *sampler
	activation *activate.Metrics
	// spans takes those that functions make themselves; nil: there is no collector.
	spans     *spans.Receiver
	unlisting unlisting
	// hashKey is for key.
	hashKey [sha256.Size]byte

	// trials has room for as many as may be tried at once.
	trials chan struct{}

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
	meter       *meter
	// scaled is nil when the number of instances is fixed.
	scaled *scaled
	// apology is a listener that answers with the reason why the function cannot be
	// run; nil when it can, or has an activator of its own.
	apology    *activate.Activator
	apologizes *manager
	// closing counts activators that are taken out of service.
	closing int
}

// current is the wanted generation; nil when the function was removed.
func (f *function) current() *generation {
	if n := len(f.generations); n > 0 && !f.generations[n-1].retired {
		return f.generations[n-1]
	}
	return nil
}

func newManager(c Config, metrics *instance.Metrics, activation *activate.Metrics) (*manager, error) {
	root, err := os.OpenRoot(c.Root)
	if err != nil {
		return nil, err
	}
	// What instances of a runner that was killed have left; they died with it.
	if err := removeTree(scratchDir(c)); err != nil {
		return nil, fmt.Errorf("functions cache: %w", err)
	}
	m := &manager{
		config: c, metrics: metrics, root: root, changed: signal.NewWake(),
		trials: make(chan struct{}, maxTrials), functions: map[string]*function{}, logs: newLogbook(), activation: activation,
	}
	if c.Collector != nil {
		m.spans = spans.New(c.Collector, c.Registerer)
	}
	rand.Read(m.hashKey[:])
	m.builder = newBuilder(root, c, m.logs)
	m.interpreters, m.sources = m.bring(), m.registries()
	m.builder.golang = m.sources.golang
	m.sampler = &sampler{m: m, seen: map[string]*sampled{}}
	return m, nil
}

// compile prepares the awslambdaric of a folder.
func (m *manager) compile(path string) {
	ctx, cancel := context.WithTimeout(m.builder.ctx, time.Minute)
	defer cancel()
	if err := lambda.Compile(ctx, lambda.Options{Python: m.interpreters.python().path, PythonPath: path}); err != nil {
		m.config.Logger.Debug("Python functions start a little slower", "error", err)
	}
}

func (m *manager) close() { m.root.Close() }

// apply makes the wanted functions the given ones, which are of a revision of the
// configuration, with the values of their env_secrets and their versions by name.
func (m *manager) apply(wanted []*pb.Function, secrets map[string]secretEnv, versions map[string]*pb.DeployedVersion, revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return
	}
	names := map[string]bool{}
	for _, w := range wanted {
		names[w.GetName()] = true
		m.applyOne(w, secrets[w.GetName()], versions[w.GetName()], revision)
	}
	for name, f := range m.functions {
		if names[name] {
			continue
		}
		if f.current() != nil {
			m.config.Logger.Info("function is removed", "function", name)
		}
		f.fix()
		for _, g := range f.generations {
			g.retire()
		}
	}
	m.collect()
	m.changed.Set()
}

func (m *manager) applyOne(w *pb.Function, secrets secretEnv, version *pb.DeployedVersion, revision int64) {
	f := m.functions[w.GetName()]
	if f == nil {
		f = &function{name: w.GetName(), meter: &meter{function: w.GetName(), logs: m.logs}}
		m.functions[w.GetName()] = f
	}
	count := f.scale(m, w)
	k := m.key(w, secrets)
	if g := f.current(); g != nil && g.key == k {
		g.revision, g.version = revision, version.GetNumber()
		g.scale(max(count, g.trial.wants(time.Now())))
		m.settle(f)
		return
	}
	m.config.Logger.Info("function is wanted", "function", w.GetName(), "instances", count, "version", len(f.generations)+1)
	g := newGeneration(m, f, w, k, count)
	g.secrets = secrets
	g.revision, g.version = revision, version.GetNumber()
	if f.scaled != nil && version != nil && !version.GetServed() {
		g.trial.due, g.want = true, max(1, g.want)
	}
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
	if g != nil && g.complete() {
		g.whole = true
		for _, old := range f.generations {
			if old != g {
				old.retire()
			}
		}
	}
	f.tell()
}

// collect forgets generations that have no slots left, and functions without
// generations. The caller holds mu.
func (m *manager) collect() {
	for name, f := range m.functions {
		f.generations = slices.DeleteFunc(f.generations, func(g *generation) bool {
			if g.retired && len(g.slots) == 0 && g.prepared {
				g.release()
				return true
			}
			return false
		})
		if len(f.generations) == 0 && f.closing == 0 {
			delete(m.functions, name)
			m.metrics.Forget(name)
			m.activation.Forget(name)
			m.spans.Forget(name)
			m.logs.forget(name)
		}
	}
}

// state is what the control plane is told: all instances, sorted, and the
// functions that cannot be run.
func (m *manager) state() *pb.RunnerState {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &pb.RunnerState{Problems: map[string]string{}, ProblemOutput: map[string]string{}}
	for _, f := range m.functions {
		for _, g := range f.generations {
			for _, s := range g.slots {
				out.Instances = append(out.Instances, s.report()...)
			}
		}
		if g := f.current(); g != nil {
			if why := g.trouble(); why != "" {
				out.Problems[f.name] = why
				if g.output != "" {
					out.ProblemOutput[f.name] = strings.ToValidUTF8(g.output, "\ufffd")
				}
			}
		}
		if st := f.state(); st != nil {
			out.Functions = append(out.Functions, st)
		}
	}
	slices.SortFunc(out.Functions, func(a, b *pb.FunctionState) int { return strings.Compare(a.GetFunction(), b.GetFunction()) })
	slices.SortFunc(out.Instances, func(a, b *pb.Instance) int {
		if c := strings.Compare(a.GetFunction(), b.GetFunction()); c != 0 {
			return c
		}
		return strings.Compare(a.GetId(), b.GetId())
	})
	return out
}

// stop drains everything, within the stop timeout, and returns when no process is
// left. Without a control plane nobody tells the proxies to close connections, so
// idle ones are closed; with one it is waited for, but not for long.
func (m *manager) stop(connected bool) {
	m.mu.Lock()
	m.stopped = true
	o := instance.DrainOptions{Limit: m.config.StopTimeout, CutIdle: !connected}
	for _, f := range m.functions {
		f.fix()
		for _, g := range f.generations {
			g.retireWith(o)
		}
	}
	m.mu.Unlock()
	m.changed.Set()
	m.builder.stop()
	if connected {
		defer time.AfterFunc(m.config.StopTimeout/2, m.unlisting.end).Stop()
	} else {
		m.unlisting.end()
	}

	done := make(chan struct{})
	go func() { m.running.Wait(); close(done) }()
	select {
	case <-done:
		m.changed.Set()
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
	m.changed.Set()
}

// lost notes that there is no stream to the control plane. While the runner stops
// nobody is waited for then.
func (m *manager) lost() {
	m.live.Store(false)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		m.unlisting.end()
	}
}

// connected reports whether there is a stream to the control plane.
func (m *manager) connected() bool { return m.live.Load() }

// alive are the instances whose processes run.
func (m *manager) alive() []alive {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []alive
	add := func(f *function, i *instance.Instance, started time.Time) {
		select {
		case <-i.Dead():
		default:
			out = append(out, alive{meter: f.meter, id: i.ID(), pid: i.PID(), started: started})
		}
	}
	for _, f := range m.functions {
		for _, g := range f.generations {
			for _, s := range g.slots {
				if s.instance != nil {
					add(f, s.instance, s.started)
				}
				for _, x := range s.former {
					add(f, x.Instance, x.started)
				}
			}
		}
	}
	return out
}

// stats is what the control plane is told of what functions did.
func (m *manager) stats() *pb.RunnerStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &pb.RunnerStats{}
	for _, f := range m.functions {
		if st := f.meter.stats(); st != nil {
			out.Functions = append(out.Functions, st)
		}
		if f.scaled != nil && !f.scaled.last.Time.IsZero() {
			out.Decisions = append(out.Decisions, f.scaled.last.Proto(f.name))
		}
	}
	slices.SortFunc(out.Functions, func(a, b *pb.FunctionStats) int { return strings.Compare(a.GetFunction(), b.GetFunction()) })
	slices.SortFunc(out.Decisions, func(a, b *pb.ScaleDecision) int { return strings.Compare(a.GetFunction(), b.GetFunction()) })
	return out
}
