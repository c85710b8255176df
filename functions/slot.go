package functions

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/instance"
)

// maxMessage bounds the message of an instance in the state.
const maxMessage = 4 << 10

// slot keeps one instance running: it starts the next when one ends. Its fields
// are guarded by the manager's mu; run is its goroutine.
type slot struct {
	g *generation
	// id, started, state and message are of the newest attempt; instance is nil
	// when there is no process of it.
	id       string
	started  time.Time
	readyAt  time.Time
	state    pb.InstanceState
	message  string
	instance *instance.Instance
	restarts uint32
	// former are instances besides the newest that are not quite gone.
	former []*member
	gone   sync.WaitGroup
	// leaving means that the slot is to end; quit is closed then.
	leaving bool
	quit    chan struct{}
}

// member is an instance that is not the newest of its slot.
type member struct {
	*instance.Instance
	started, readyAt time.Time
	// state is READY while it serves until its successor is ready, then DRAINING,
	// and nothing when its process is gone and only its listener refuses.
	state pb.InstanceState
}

func newSlot(g *generation) *slot { return &slot{g: g, quit: make(chan struct{})} }

// ready reports whether the newest instance serves and is to go on.
func (s *slot) ready() bool {
	return s.state == pb.InstanceState_INSTANCE_STATE_READY && !s.leaving
}

// serves reports whether any instance does.
func (s *slot) serves() bool {
	return s.ready() || slices.ContainsFunc(s.former, func(m *member) bool { return m.state == pb.InstanceState_INSTANCE_STATE_READY })
}

// serves reports whether any instance of the function does. The caller holds the
// manager's mu.
func (f *function) serves() bool {
	return slices.ContainsFunc(f.generations, func(g *generation) bool { return slices.ContainsFunc(g.slots, (*slot).serves) })
}

// leave asks the slot to end. The caller holds mu.
func (s *slot) leave() {
	s.leaving = true
	close(s.quit)
}

// cut ends all waiting of its instances. The caller holds mu.
func (s *slot) cut() {
	if s.instance != nil {
		s.instance.Cut()
	}
	for _, m := range s.former {
		m.Cut()
	}
}

// report is what the control plane is told. The caller holds mu.
func (s *slot) report() []*pb.Instance {
	var out []*pb.Instance
	if s.state != 0 {
		r := &pb.Instance{
			Function: s.g.function.name, Id: s.id, State: s.state, Restarts: s.restarts, Message: s.message,
			StartTime: timestamppb.New(s.started), Version: s.g.version,
		}
		if s.instance != nil {
			fill(r, s.instance)
		}
		out = append(out, r)
	}
	for _, m := range s.former {
		if m.state == 0 {
			continue
		}
		r := &pb.Instance{
			Function: s.g.function.name, Id: m.ID(), State: m.state, Restarts: s.restarts, StartTime: timestamppb.New(m.started),
			Version: s.g.version,
		}
		fill(r, m.Instance)
		out = append(out, r)
	}
	return out
}

// fill adds what is known of a process.
func fill(r *pb.Instance, i *instance.Instance) {
	r.Pid, r.Isolation = int32(i.Main()), i.Isolation()
	if r.State == pb.InstanceState_INSTANCE_STATE_READY || r.State == pb.InstanceState_INSTANCE_STATE_DRAINING {
		r.Address, r.Port = instance.HostPort(i.Addr())
	}
}

// set changes fields under the lock, lets a finished rollout take effect and
// tells the control plane: all in one state.
func (s *slot) set(change func()) {
	s.g.m.mu.Lock()
	change()
	s.g.m.settle(s.g.function)
	s.g.m.mu.Unlock()
	s.g.m.changed.Set()
}

// run is the life of the slot.
func (s *slot) run() {
	var pauses pauses
	var former *member // serves until its successor is ready
	waited := s.awaitTurn()
	for waited {
		end, next, again := s.attempt(former)
		former = next
		if !again || !s.sleep(pauses.after(end)) {
			break
		}
		s.set(func() { s.restarts++ })
	}
	s.set(func() {
		s.state = 0
		if former != nil {
			s.drain(former)
		}
	})
	s.gone.Wait()
	s.set(func() {
		s.g.remove(s)
		s.g.m.collect()
	})
}

func (s *slot) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-s.quit:
		return false
	case <-timer.C:
		return true
	}
}

// attempt starts one instance and returns when it has ended or is to be replaced.
// former drains as soon as the new one is ready. next is what is to drain when its
// successor is ready, and again is false when the slot is to end.
func (s *slot) attempt(former *member) (end ending, next *member, again bool) {
	select {
	case <-s.quit:
		return end, former, false
	default:
	}
	tried, ok := s.tried()
	if !ok {
		return end, former, false
	}
	tried = sync.OnceFunc(tried)
	defer tried()
	o := s.g.options
	o.ID = newID(s.g.function.name)
	s.set(func() { s.id, s.started, s.state = o.ID, time.Now(), pb.InstanceState_INSTANCE_STATE_STARTING })
	i, err := instance.Start(o)
	if err != nil {
		return s.failed(nil, err.Error()), former, true
	}
	s.set(func() { s.instance = i })
	select {
	case <-i.Ready():
	case <-i.Dead():
		return s.failed(i, why(i)), former, true
	case <-s.quit:
		s.set(func() { s.drain(s.part()) })
		return end, former, false
	}
	tried()
	readyAt := time.Now()
	s.set(func() {
		if sc := s.g.function.scaled; sc != nil {
			s.g.trial.ready(readyAt, sc.config.IdleTimeout)
		}
		s.state, s.message, s.readyAt = pb.InstanceState_INSTANCE_STATE_READY, "", readyAt
		s.g.crash.count = 0
		if former != nil {
			s.drain(former)
		}
	})
	select {
	case <-i.Dead():
		end = s.failed(i, why(i))
		end.ready = time.Since(readyAt)
		end.replaced = errors.Is(i.Err(), instance.ErrOverdue) // a slow request is not a crash
		return end, nil, true
	case <-i.Replace():
		s.set(func() { next = s.part() })
		// It still serves, so there is time for a pause.
		return ending{ready: time.Since(readyAt), answered: i.Answered(), proven: true}, next, true
	case <-s.quit:
		s.set(func() { s.drain(s.part()) })
		return end, nil, false
	}
}

// lastOutput separates the reason of an end from what was printed before it.
const lastOutput = "; last output:\n"

// why is the reason of an end with the last lines of output.
func why(i *instance.Instance) string {
	reason := "it ended"
	if err := i.Err(); err != nil {
		reason = err.Error()
	}
	if lines := i.LastLines(); lines != "" {
		reason += lastOutput + lines
	}
	if len(reason) > maxMessage {
		reason = reason[:maxMessage/2] + "\n…\n" + reason[len(reason)-maxMessage/2:]
	}
	return reason
}

// failed notes the end of an instance, or a start that failed (i is nil then). The
// instance lingers to refuse what is on its way to it.
func (s *slot) failed(i *instance.Instance, message string) (end ending) {
	s.g.m.config.Logger.Warn("instance ended", "function", s.g.function.name, "instance", s.id, "reason", message)
	// What it printed is in the log already.
	reason, _, _ := strings.Cut(message, lastOutput)
	s.g.m.logs.sayOf(s.g.spec, s.id, reason)
	s.set(func() {
		end.answered = i != nil && i.Answered()
		s.g.proven = s.g.proven || end.answered
		if !end.answered {
			s.g.crash.note(s.state, s.readyAt, message)
		}
		if s.g.function.scaled != nil && s.state == pb.InstanceState_INSTANCE_STATE_STARTING {
			s.g.trial.failed(message)
		}
		if i != nil {
			s.part().state = 0
		}
		s.state, s.message = pb.InstanceState_INSTANCE_STATE_BACKOFF, message
		end.proven, end.last = s.g.proven, !s.g.function.serves()
	})
	return end
}

// part makes the newest instance a member besides the newest, which there is none
// of then, and follows it to its end. The caller holds mu.
func (s *slot) part() *member {
	m := &member{Instance: s.instance, started: s.started, readyAt: s.readyAt, state: s.state}
	s.instance, s.state = nil, 0
	s.former = append(s.former, m)
	s.gone.Go(func() {
		<-m.Dead()
		s.g.m.sampler.ended(alive{meter: s.g.function.meter, id: m.ID(), pid: m.PID(), started: m.started}, m.CPU())
		s.set(func() { m.state = 0 })
		<-m.Closed()
		s.set(func() { s.former = slices.DeleteFunc(s.former, func(x *member) bool { return x == m }) })
	})
	return m
}

// drain takes a member out of service. It serves on until no proxy knows of it.
// The caller holds mu.
func (s *slot) drain(m *member) {
	o := s.g.drain
	if m.state == pb.InstanceState_INSTANCE_STATE_READY {
		m.state = pb.InstanceState_INSTANCE_STATE_DRAINING
		o.Unlisted = s.g.m.unlist()
	}
	m.Drain(o)
}
