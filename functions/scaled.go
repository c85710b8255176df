package functions

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/activate"
	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/internal/signal"
	"github.com/penstock-gateway/penstock/scale"
)

const (
	// decideEvery is how often the scaler looks at a function that has instances or
	// requests. One that has none costs nothing.
	decideEvery = 250 * time.Millisecond
	// decidePause is the shortest time between two looks that requests asked for.
	decidePause = 2 * time.Millisecond
	// crashLoop is after how many failed starts in a row requests are told so, and
	// wait no longer.
	crashLoop = 3
	// defaultMaxQueued is how many requests may wait when a function does not say.
	defaultMaxQueued = 1000
	// heldBytes bounds the bodies of all requests of one function that wait.
	heldBytes = 256 << 20
)

// scaled is what a function has whose number of instances follows the load. Its
// fields are guarded by the manager's mu.
type scaled struct {
	m         *manager
	f         *function
	config    scale.Config
	scaler    Scaler
	central   bool
	last      scale.Decision
	activator *activate.Activator
	pressure  signal.Wake // has the scaler look now
	cancel    context.CancelFunc
}

// scale brings the way in which a function is scaled to what is wanted, and returns
// the number of instances to have now. The caller holds the manager's mu.
func (f *function) scale(m *manager, w *pb.Function) int {
	if w.GetScale() == nil {
		if f.scaled != nil {
			f.fix()
		}
		return max(int(w.GetInstances()), 1)
	}
	config, err := scale.ConfigOf(w)
	if err != nil { // the control plane has refused it
		m.config.Logger.Error("function cannot be scaled as written", "function", f.name, "error", err)
		config = scale.Config{Min: int(w.GetScale().GetMin()), Max: max(1, int(w.GetScale().GetMax())), Concurrency: 1}
	}
	limits := activate.Limits{MaxQueued: int(cmp.Or(w.GetScale().GetMaxQueued(), defaultMaxQueued)), MaxWait: 30 * time.Second}
	for _, d := range []interface{ AsDuration() time.Duration }{w.GetStartTimeout(), w.GetScale().GetMaxWait()} {
		limits.MaxWait = cmp.Or(d.AsDuration(), limits.MaxWait)
	}
	if f.scaled == nil {
		f.scaled = m.newScaled(f, w, limits, config.Concurrency)
	}
	s := f.scaled
	if s.scaler == nil || s.config != config {
		s.config, s.scaler = config, m.config.NewScaler(config)
	}
	if s.activator != nil {
		s.activator.SetLimits(limits)
	}
	mode := w.GetScale().GetQueue()
	s.central = mode == pb.QueueMode_QUEUE_MODE_CENTRAL || mode != pb.QueueMode_QUEUE_MODE_DIRECT && config.Concurrency == 1
	s.pressure.Set()
	return min(max(s.last.Wanted, config.Min), config.Max)
}

func (m *manager) newScaled(f *function, w *pb.Function, limits activate.Limits, concurrency int) *scaled {
	s := &scaled{m: m, f: f, pressure: signal.NewWake()}
	var err error
	s.activator, err = m.newActivator(f, w, limits, concurrency, s.pressure.Set)
	if err != nil {
		m.config.Logger.Error("function cannot be called while it has no instance", "function", f.name, "error", err)
	}
	f.forgive()
	f.meter.activator.Store(s.activator)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	m.running.Go(func() { s.run(ctx) })
	return s
}

// heldOptions is how bodies of requests are taken in that no instance has yet.
func heldOptions(w *pb.Function, concurrency int) instance.Options {
	o := instance.Options{Concurrency: concurrency}
	if contract.HTTP2(w) {
		o.StreamAfter, o.UploadStall = grpcStreamAfter, cmp.Or(w.GetTimeout().AsDuration(), 30*time.Second)
	}
	return o
}

// fix ends the scaling of a function; its activator goes when no proxy knows of it.
// The caller holds the manager's mu.
func (f *function) fix() {
	f.forgive()
	s := f.scaled
	if s == nil {
		return
	}
	f.scaled = nil
	s.cancel()
	f.close(s.m, s.activator)
}

// close ends an activator, if any, when no proxy knows of it. The caller holds mu.
func (f *function) close(m *manager, a *activate.Activator) {
	if a == nil {
		return
	}
	f.closing++
	unlisted := m.unlist()
	m.running.Go(func() {
		a.Close(context.Background(), unlisted, m.config.StopTimeout)
		m.mu.Lock()
		defer m.mu.Unlock()
		f.closing--
		m.collect()
	})
}

// run is the scaler's loop. It needs no control plane.
func (s *scaled) run(ctx context.Context) {
	tick := time.NewTicker(decideEvery)
	defer tick.Stop()
	for {
		looked := time.Now()
		if s.decide() {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			case <-s.pressure:
			}
		} else {
			// Nothing can change before a request comes.
			select {
			case <-ctx.Done():
				return
			case <-s.pressure:
			}
		}
		// Requests that come together are looked at together.
		if wait := time.Until(looked.Add(decidePause)); wait > 0 {
			time.Sleep(wait)
		}
	}
}

// decide looks once, and reports whether it is to look again soon.
func (s *scaled) decide() (active bool) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.f.scaled != s || s.m.stopped {
		return false
	}
	g := s.f.serving()
	if g == nil {
		return false
	}
	o := scale.Observation{Now: time.Now()}
	slots := 0
	for _, sl := range g.slots {
		switch {
		case sl.leaving:
			continue
		case sl.ready():
			o.Ready++
		case sl.starting():
			o.Starting++
		}
		slots++
	}
	if s.activator != nil {
		o.Queued, o.OldestWait = s.activator.Load(o.Now)
	}
	s.f.meter.observe(&o)
	before := s.last.Wanted
	s.last = s.scaler.Decide(o)
	want := s.last.Wanted
	for _, g := range s.f.generations {
		if g.retired {
			continue
		}
		if g.want = want; g.crash.count >= crashLoop {
			g.want = min(want, max(1, s.config.Min)) // one that tries is enough
		}
		g.want = max(g.want, g.trial.wants(o.Now))
		g.fill()
	}
	s.m.settle(s.f)
	if before != want {
		s.m.config.Logger.Info("function is scaled", "function", s.f.name, "from", before, "to", want, "reason", s.last.Reason)
		s.m.changed.Set()
	}
	return slots > 0 || want > 0 || s.f.current().wants() > 0 || o.Queued > 0 || o.InFlight > 0
}

// serving is the generation that the scaler goes by: the newest that was whole, or
// the newest. The caller holds the manager's mu.
func (f *function) serving() *generation {
	for i := len(f.generations) - 1; i >= 0; i-- {
		if g := f.generations[i]; g.whole && !g.retired {
			return g
		}
	}
	return f.current()
}

// tell gives the activator the instances that are ready, or why there are none. The
// caller holds the manager's mu.
func (f *function) tell() {
	if f.scaled == nil || f.scaled.activator == nil {
		f.apologize()
		return
	}
	var members []activate.Member
	for _, g := range f.generations {
		for _, s := range g.slots {
			if s.ready() {
				members = append(members, activate.Member{Instance: s.instance, Started: s.started, Ready: s.readyAt})
			}
			for _, m := range s.former {
				if m.state == pb.InstanceState_INSTANCE_STATE_READY {
					members = append(members, activate.Member{Instance: m.Instance, Started: m.started, Ready: m.readyAt})
				}
			}
		}
	}
	f.scaled.activator.Set(members, f.trouble())
}

// trouble is why a scaled function will have no new instance soon; nil when one is being
// started, or may be. The caller holds the manager's mu.
func (f *function) trouble() (trouble *activate.Trouble) {
	for _, g := range f.generations {
		for _, s := range g.slots {
			if s.starting() {
				return nil
			}
			if !g.retired && s.state == pb.InstanceState_INSTANCE_STATE_BACKOFF && g.crash.count >= crashLoop {
				trouble = g.crashes()
			}
		}
		if t := g.cannotStart(); t != nil && f.serving() == g {
			trouble = t // a version before it could be started
		}
	}
	return trouble
}

// state is what the control plane is told of the function as a whole; nil: nothing.
// The caller holds the manager's mu.
func (f *function) state() *pb.FunctionState {
	st := &pb.FunctionState{Function: f.name}
	prepared := false
	for _, g := range f.generations {
		if g.prepared && !g.retired && g.options.Sandbox != nil {
			prepared = true
			st.Isolation, st.IsolationMissing = g.options.Sandbox.Means, g.options.Sandbox.Missing
		}
	}
	for _, g := range f.generations {
		if g.whole && !g.retired {
			st.Revision = max(st.Revision, g.revision)
		}
	}
	listener, trouble := f.apology, f.refusal()
	st.Refusing = trouble != nil && (f.scaled == nil || !prepared)
	if s := f.scaled; s != nil && s.activator != nil {
		listener, trouble = s.activator, f.trouble()
		st.Central, st.Wanted = s.central, uint32(max(0, s.last.Wanted))
	}
	if trouble != nil {
		st.Trouble = trouble.Text
	} else if g := f.serving(); g != nil && g.trial.failure != "" && !f.serves() {
		// A start may be under way, or begins with the next request; so did the last.
		st.Trouble = fmt.Sprintf("function %s: its last start failed: %s", f.name, g.crash.reason)
	}
	if !prepared && !st.Refusing {
		return nil
	}
	if listener != nil {
		st.ActivatorAddress, st.ActivatorPort = instance.HostPort(listener.Addr())
	}
	return st
}

// complete reports whether a generation can take over: all of its instances are ready.
// Of one that is scaled to none nothing is known before the first request; only if
// it has failed already does the one before stay, too.
func (g *generation) complete() bool {
	if g.function.scaled == nil {
		return g.readyCount() >= g.want
	}
	return g.prepared && g.readyCount() >= g.want && (g.want > 0 || g.crash.count == 0)
}

// adjust makes the slots of a scaled function as many as are wanted. One that
// starts goes on: what it has cost is spent. Ready ones go only while the control
// plane can have the proxies told. The caller holds mu.
func (g *generation) adjust() {
	active, ready := 0, 0
	for _, s := range g.slots {
		if !s.leaving {
			active++
		}
		if s.ready() {
			ready++
		}
	}
	for ; active < g.want; active++ {
		s := newSlot(g)
		g.slots = append(g.slots, s)
		g.m.running.Go(s.run)
	}
	for i := len(g.slots) - 1; i >= 0 && active > g.want; i-- {
		s := g.slots[i]
		switch {
		case s.leaving || s.starting():
			continue
		case s.ready():
			if ready <= g.want || !g.m.connected() {
				continue
			}
			ready--
		}
		s.leave()
		active--
	}
}

// crash is how starts of a generation failed, one after another.
type crash struct {
	count  int
	reason string // in one line
	until  time.Time
}

// note counts an end of an instance that has answered nothing. One that was ready for
// a while is none of a row.
func (c *crash) note(state pb.InstanceState, readyAt time.Time, message string) {
	if state == pb.InstanceState_INSTANCE_STATE_READY && time.Since(readyAt) >= stableAfter {
		return
	}
	c.count++
	first, rest, _ := strings.Cut(message, lastOutput)
	c.reason = first
	if line := lastWords(rest); line != "" && !strings.HasSuffix(first, strings.TrimPrefix(line, "[ERROR] ")) {
		c.reason += fmt.Sprintf("; its last line: %.500s", line)
	}
	c.until = time.Now().Add(min(backoffMin<<min(c.count, 20), backoffMax))
}

// lastWords is the last line of an output that says something: the runtime of Lambda
// ends with the head of a traceback that has no lines.
func lastWords(output string) string {
	for _, line := range slices.Backward(strings.Split(output, "\n")) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "Traceback (most recent call last)") {
			return line
		}
	}
	return ""
}

// starting reports whether the slot's instance is on its way to be ready.
func (s *slot) starting() bool {
	return !s.leaving && (s.state == pb.InstanceState_INSTANCE_STATE_STARTING || s.state == 0)
}

// awaitTurn holds a new slot of a function back that fails to start again and
// again. It is false when the slot is to end.
func (s *slot) awaitTurn() bool {
	s.g.m.mu.Lock()
	c := s.g.crash
	s.g.m.mu.Unlock()
	pause := time.Until(c.until)
	if c.count < crashLoop || pause <= 0 || s.g.function.scaled == nil {
		return true
	}
	s.set(func() { s.state, s.message = pb.InstanceState_INSTANCE_STATE_BACKOFF, c.reason })
	return s.sleep(pause)
}
