package functions

import (
	"context"
	"sync"
	"time"
)

// sampleEvery is how often memory and processor time of instances are looked at,
// and how often the control plane is told what functions did.
const sampleEvery = 2 * time.Second

// process is what the system says of a process.
type process struct {
	parent int
	cpu    float64 // seconds, its own
	memory float64 // resident, in MiB
}

// sampled is what is remembered of an instance between two looks.
type sampled struct {
	at     time.Time
	cpu    map[int]float64 // by process
	total  float64         // of cpu, ever
	memory float64
}

// sampler adds up what instances use.
type sampler struct {
	m *manager

	mu   sync.Mutex
	seen map[string]*sampled // by instance
}

func (s *sampler) run(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.look(time.Now())
		}
	}
}

// alive is an instance whose process runs.
type alive struct {
	meter   *meter
	id      string
	pid     int
	started time.Time
}

func (s *sampler) look(now time.Time) {
	running := s.m.alive()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(running) == 0 {
		clear(s.seen)
		return
	}
	all := processes()
	children := map[int][]int{}
	for pid, p := range all {
		children[p.parent] = append(children[p.parent], pid)
	}
	seen := make(map[string]*sampled, len(running))
	for _, a := range running {
		before := s.seen[a.id]
		if before == nil {
			before = &sampled{at: a.started}
		}
		after := &sampled{at: now, cpu: map[int]float64{}, total: before.total}
		u := usage{seconds: max(0, now.Sub(before.at).Seconds())}
		for family := []int{a.pid}; len(family) > 0; family = family[1:] {
			p, there := all[family[0]]
			if !there {
				continue
			}
			after.cpu[family[0]] = p.cpu
			u.cpu += max(0, p.cpu-before.cpu[family[0]])
			after.memory += p.memory
			family = append(family, children[family[0]]...)
		}
		after.total += u.cpu
		u.memory = after.memory * u.seconds
		a.meter.use(u)
		seen[a.id] = after
	}
	s.seen = seen
}

// ended adds what an instance used since it was looked at last. cpu is what its
// process used in all its life, with the children that it waited for.
func (s *sampler) ended(a alive, cpu time.Duration) {
	s.mu.Lock()
	before := s.seen[a.id]
	delete(s.seen, a.id)
	s.mu.Unlock()
	if before == nil {
		before = &sampled{at: a.started}
	}
	seconds := max(0, time.Since(before.at).Seconds())
	a.meter.use(usage{seconds: seconds, memory: before.memory * seconds, cpu: max(0, cpu.Seconds()-before.total)})
}
