package functions

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/internal/pause"
)

// generation is one version of a function. Its fields are guarded by the
// manager's mu.
type generation struct {
	m        *manager
	function *function
	spec     *pb.Function
	secrets  secretEnv
	key      [sha256.Size]byte
	// revision is the newest of the configuration in which it is wanted.
	revision int64
	want     int
	slots    []*slot
	crash    crash
	// version is its number in the configuration; 0: not known.
	version int64
	// trial is what is to be found out of it before a request comes; see trial.
	trial trial
	// proven means that one of its instances has answered a request.
	proven bool
	// options of its instances, once prepared; release gives back what it holds in
	// the cache.
	options  instance.Options
	release  func()
	prepared bool
	// problem is why it cannot be prepared, output the last lines of a build that
	// failed.
	problem, output string
	// whole means that all its slots were ready at one time.
	whole bool
	// retired means that it is not wanted any more.
	retired bool
	drain   instance.DrainOptions
	ctx     context.Context
	cancel  context.CancelFunc
}

func newGeneration(m *manager, f *function, spec *pb.Function, key [sha256.Size]byte, want int) *generation {
	g := &generation{m: m, function: f, spec: spec, key: key, want: want}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.drain = instance.DrainOptions{Limit: cmp.Or(spec.GetTimeout().AsDuration(), 30*time.Second) + time.Second}
	return g
}

// prepare finds and builds the source, again and again until it succeeds or the
// generation is retired, and then starts the slots.
func (g *generation) prepare() {
	for again := pause.Between(time.Second, backoffMax); ; again.Wait(g.ctx) {
		options, release, err := g.resolve()
		g.m.mu.Lock()
		if g.retired || err == nil {
			g.options, g.release, g.prepared, g.problem, g.output = options, release, true, "", ""
			if !g.retired {
				g.fill()
				g.m.settle(g.function)
				if g.function.scaled != nil {
					g.function.scaled.pressure.Set()
				}
			}
			g.m.collect()
			g.m.mu.Unlock()
			g.m.changed.Set()
			return
		}
		if !strings.HasPrefix(g.problem, err.Error()) || g.problem == "" {
			g.problem, g.output = err.Error(), ""
			if failed, ok := errors.AsType[*buildError](err); ok {
				_, id, _ := strings.Cut(g.function.name, "/functions/")
				id, _, _ = strings.Cut(id, "@")
				g.problem += "; more: penstock fn describe " + id
				g.output = failed.output
			}
			g.m.config.Logger.Error("function cannot be run", "function", g.function.name, "error", err)
			g.m.logs.sayOf(g.spec, "", "it cannot be run: "+g.problem)
			g.m.settle(g.function)
		}
		g.m.mu.Unlock()
		g.m.changed.Set()
	}
}

// resolve makes the options of instances out of the function, and what gives back
// what they use of the cache.
func (g *generation) resolve() (o instance.Options, release func(), err error) {
	f, c := g.spec, g.m.config
	var held []func()
	release = func() {
		for _, r := range held {
			r()
		}
	}
	hold := func(dir string, r func(), err error) (string, error) {
		if r != nil {
			held = append(held, r)
		}
		return dir, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if err := g.secrets.missing(f); err != nil {
		return o, release, err
	}
	dir, err := hold(g.m.source(g.ctx, f))
	if err != nil {
		return o, release, err
	}
	o = instance.Options{
		Function: f.GetName(), SocketDir: c.SocketDir, Dir: dir, Env: g.secrets.environment(f.GetEnv()),
		Timeout: f.GetTimeout().AsDuration(), Silence: c.Silence, StartTimeout: f.GetStartTimeout().AsDuration(),
		Logger: c.Logger, Tracer: c.TracerProvider.Tracer("github.com/penstock-gateway/penstock/functions"), Metrics: g.m.metrics, Observer: ofSource{g.function.meter, f.GetSource()},
		Spans: g.m.spans, SpansLost: func(text string) { g.m.logs.say(f.GetName(), "", text) },
	}
	level, err := buildLevel(f)
	if err != nil {
		return o, release, err
	}
	if len(contract.Build(f)) > 0 {
		if o.Dir, err = hold(g.m.builder.build(g.ctx, f, dir, level)); err != nil {
			return o, release, err
		}
	}
	layer, err := g.m.layer(g.ctx, f, level, o.Dir, hold)
	if err != nil {
		return o, release, fmt.Errorf("its dependencies: %w", err)
	}
	o.Dir = cmp.Or(layer.dir, o.Dir)
	r, err := g.m.contract(g.ctx, f, o.Dir, layer.path)
	if err != nil {
		return o, release, err
	}
	o.Contract, o.Concurrency, o.UploadStall, o.StreamAfter = r.factory, r.concurrency, r.uploadStall, r.streamAfter
	for _, d := range []string{layer.dir, o.Dir, dir} {
		if strings.HasPrefix(d, c.CacheDir+string(filepath.Separator)) {
			o.Copies = append(o.Copies, d)
		}
	}
	read := append(g.m.needs(g.ctx, f), o.Dir, layer.path, layer.modules)
	o.Dir = cmp.Or(r.dir, o.Dir)
	if o.Sandbox, err = g.m.isolate(f, read); err != nil {
		return o, release, err
	}
	o.Queue = max(16, o.Concurrency/4)
	return o, release, nil
}

// scale changes how many instances are wanted. The caller holds mu.
func (g *generation) scale(n int) {
	if g.want == n {
		return
	}
	g.m.config.Logger.Info("function is scaled", "function", g.function.name, "from", g.want, "to", n)
	g.want = n
	g.fill()
}

// fill makes as many slots as are wanted. Those that go first are the ones that
// are not ready. The caller holds mu.
func (g *generation) fill() {
	if !g.prepared || g.retired {
		return
	}
	if g.function.scaled != nil {
		g.adjust()
		return
	}
	active := 0
	for _, s := range g.slots {
		if !s.leaving {
			active++
		}
	}
	for ; active < g.want; active++ {
		s := newSlot(g)
		g.slots = append(g.slots, s)
		g.m.running.Go(s.run)
	}
	for _, ready := range []bool{false, true} {
		for i := len(g.slots) - 1; i >= 0 && active > g.want; i-- {
			if s := g.slots[i]; !s.leaving && s.ready() == ready {
				s.leave()
				active--
			}
		}
	}
}

// retire takes the generation out of service. The caller holds mu.
func (g *generation) retire() { g.retireWith(g.drain) }

func (g *generation) retireWith(o instance.DrainOptions) {
	if !g.retired {
		g.retired = true
		g.drain = o
		g.cancel()
	}
	for _, s := range g.slots {
		if !s.leaving {
			s.leave()
		}
		for _, f := range s.former {
			if f.state == 0 { // it only lingers
				f.Drain(o)
			}
		}
	}
}

// remove forgets a slot whose goroutine ends. The caller holds mu.
func (g *generation) remove(s *slot) {
	g.slots = slices.DeleteFunc(g.slots, func(t *slot) bool { return t == s })
}

func (g *generation) readyCount() int {
	n := 0
	for _, s := range g.slots {
		if s.ready() {
			n++
		}
	}
	return n
}

// trouble is why the function does not run: it cannot be prepared, or none of its
// instances could be started.
func (g *generation) trouble() string {
	if g.problem != "" {
		return g.problem
	}
	why := g.trial.failure
	for _, s := range g.slots {
		if s.serves() || s.message == "" && g.trial.failure == "" {
			return ""
		}
		why = cmp.Or(s.message, why)
	}
	return why
}

// newID is an instance's id: the function's name and 50 random bits.
func newID(function string) string {
	var b [7]byte
	rand.Read(b[:])
	suffix := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:])[:10]
	return function[strings.LastIndexByte(function, '/')+1:] + "-" + strings.ToLower(suffix)
}
