package functions

import (
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/activate"
	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/scale"
)

// lately is the time over which the rates of the statistics are averaged.
const lately = 10 * time.Second

// meter counts what a function does. It is the Observer of its instances.
type meter struct {
	function string
	logs     *logbook
	// activator is told of free slots; nil: there is none.
	activator atomic.Pointer[activate.Activator]

	mu       sync.Mutex
	arrivals uint64
	inside   int     // requests in instances and queue
	busy     float64 // its integral
	at       time.Time
	last     time.Time // when the last request came
	split    scale.Split
	starts   scale.Sums

	requests, errors, cold, refused uint64
	usage                           usage
	rate, concurrency               average
}

// average follows the slope of a sum.
type average struct {
	at    time.Time
	sum   float64
	value float64
}

func (a *average) follow(now time.Time, sum float64) {
	if d := now.Sub(a.at); !a.at.IsZero() && d > 0 {
		part := min(1, d.Seconds()/lately.Seconds())
		a.value += part * ((sum-a.sum)/d.Seconds() - a.value)
	}
	a.at, a.sum = now, sum
}

// count changes how many requests are inside. The caller holds mu.
func (m *meter) count(n int) {
	now := time.Now()
	if !m.at.IsZero() {
		m.busy += float64(m.inside) * now.Sub(m.at).Seconds()
	}
	m.at = now
	m.inside += n
	if n > 0 {
		m.arrivals++
		m.last = now
	}
}

// Arrived implements instance.Observer.
func (m *meter) Arrived() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count(1)
}

// left counts a request that got no instance.
func (m *meter) left(refused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count(-1)
	if refused {
		m.refused++
	}
}

// Ended implements instance.Observer.
func (m *meter) Ended(s instance.Sample) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count(-1)
	if s.Refused {
		m.refused++
		return
	}
	m.requests++
	if s.Status == 0 || s.Status >= 500 {
		m.errors++
	}
	if s.Cold {
		m.cold++
	}
	if s.Total > 0 {
		m.split.Add(s.Handler, s.Total)
	}
}

// Freed implements instance.Observer.
func (m *meter) Freed() {
	if a := m.activator.Load(); a != nil {
		a.Freed()
	}
}

// Ready implements instance.Observer.
func (m *meter) Ready(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.starts.Add(d.Seconds())
}

// Line implements instance.Observer.
func (m *meter) Line(l instance.Line) { m.logs.add(m.function, "", l) }

// ofSource is the Observer of the instances of one version: their lines say which
// source printed them.
type ofSource struct {
	*meter
	source string
}

// Line implements instance.Observer.
func (o ofSource) Line(l instance.Line) { o.logs.add(o.function, o.source, l) }

// observe fills in what the scaler needs to know of requests.
func (m *meter) observe(o *scale.Observation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count(0)
	o.InFlight, o.Arrivals, o.Busy, o.LastRequest = max(0, m.inside-o.Queued), m.arrivals, m.busy, m.last
	o.Service, o.Start, o.Parts = m.split.T(), m.starts.Moments(), m.split.Parts()
}

// stats is what the control plane is told; nil when there is nothing to tell.
func (m *meter) stats() *pb.FunctionStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count(0)
	m.rate.follow(m.at, float64(m.arrivals))
	m.concurrency.follow(m.at, m.busy)
	if m.arrivals == 0 && m.usage.seconds == 0 {
		return nil
	}
	t, r := m.split.S(), m.split.R()
	return &pb.FunctionStats{
		Function: m.function, Requests: m.requests, Errors: m.errors, ColdStarts: m.cold, Refused: m.refused,
		InstanceSeconds: m.usage.seconds, MemoryMibSeconds: m.usage.memory, CpuSeconds: m.usage.cpu,
		MeanT: t.Mean, SdT: t.SD(), MeanR: r.Mean, SdR: r.SD(), CovTr: m.split.Cov(),
		MeanStart: m.starts.Moments().Mean, Rate: m.rate.value, Concurrency: m.concurrency.value,
	}
}

// use adds what instances used.
func (m *meter) use(u usage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.usage.seconds += u.seconds
	m.usage.memory += u.memory
	m.usage.cpu += u.cpu
}

// usage is what instances use: their time, memory over time in MiB seconds, and
// processor time, in seconds.
type usage struct{ seconds, memory, cpu float64 }
