package ratelimit

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/penstock-gateway/penstock/telemetry"
)

// maxLimitLabels bounds the values of the label "limit": IDs come from
// configuration that may have any number of routes.
const maxLimitLabels = 500

// Metrics are those of one limiter.
type Metrics struct {
	decisions *prometheus.CounterVec
	requests  *prometheus.CounterVec
	invalid   *prometheus.CounterVec
	seconds   prometheus.Histogram
	batch     prometheus.Histogram

	mu     sync.RWMutex
	limits map[string]bool
}

// NewMetrics makes the metrics of a limiter; nil to register nothing.
func NewMetrics(to prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: telemetry.MetricLimiterDecisions, Help: "Decisions of single limits; limits beyond the first 500 are \"other\".",
		}, []string{telemetry.LabelLimit, telemetry.LabelDecision}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: telemetry.MetricLimiterRequests, Help: "Answered requests: ok, over_limit, unavailable (refused by a failure policy), or the gRPC code of an error.",
		}, []string{telemetry.LabelCode}),
		invalid: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: telemetry.MetricLimiterInvalid, Help: "Requests with a malformed descriptor, by what is wrong.",
		}, []string{telemetry.LabelReason}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: telemetry.MetricLimiterSeconds, Help: "Time that the backend took for a request.",
			Buckets: []float64{.00001, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1},
		}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: telemetry.MetricLimiterBatch, Help: "Requests in one call of Redis.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256},
		}),
		limits: map[string]bool{},
	}
	if to == nil {
		return m, nil
	}
	return m, errors.Join(to.Register(m.decisions), to.Register(m.requests), to.Register(m.invalid),
		to.Register(m.seconds), to.Register(m.batch))
}

// RegisterBackend adds the metrics that a backend of this package has itself.
func (m *Metrics) RegisterBackend(to prometheus.Registerer, b Backend) error {
	labels := prometheus.Labels{telemetry.LabelBackend: b.Name()}
	gauge := func(name, help string, f func() float64) error {
		return to.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, f))
	}
	counter := func(name, help string, f func() float64) error {
		return to.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, f))
	}
	const upHelp = "1 while the backend of the counters answers."
	switch b := b.(type) {
	case *Memory:
		return errors.Join(
			gauge(telemetry.MetricLimiterBackendUp, upHelp, func() float64 { return 1 }),
			gauge(telemetry.MetricLimiterKeys, "Counters in memory.", func() float64 { return float64(b.Len()) }),
			counter(telemetry.MetricLimiterEvictions, "Counters that were dropped while in use, since there were too many.",
				func() float64 { return float64(b.Evictions()) }),
		)
	case *Redis:
		return errors.Join(
			gauge(telemetry.MetricLimiterBackendUp, upHelp, func() float64 {
				if b.Up() {
					return 1
				}
				return 0
			}),
			counter(telemetry.MetricLimiterBackendFailures, "Failed calls of the backend.", func() float64 { return float64(b.Failures()) }),
		)
	default:
		return nil
	}
}

// ObserveBatch is for RedisOptions.OnBatch.
func (m *Metrics) ObserveBatch(requests int) { m.batch.Observe(float64(requests)) }

// label is the ID or, when there are too many, "other".
func (m *Metrics) label(id string) string {
	m.mu.RLock()
	known, full := m.limits[id], len(m.limits) >= maxLimitLabels
	m.mu.RUnlock()
	if known {
		return id
	}
	if full {
		return "other"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.limits) >= maxLimitLabels {
		return "other"
	}
	m.limits[id] = true
	return id
}

func (m *Metrics) decided(requests []Request, results []Result, took time.Duration, code string) {
	m.seconds.Observe(took.Seconds())
	m.requests.WithLabelValues(code).Inc()
	for i, r := range results {
		m.decisions.WithLabelValues(m.label(requests[i].Spec.ID), decision(requests[i].Spec, r)).Inc()
	}
}

// decision is the word for a result in metrics and spans.
func decision(s Spec, r Result) string {
	switch {
	case r.Degraded && (r.Allowed || s.Shadow):
		return telemetry.DecisionOpen
	case r.Degraded:
		return telemetry.DecisionClosed
	case r.Allowed:
		return telemetry.DecisionAllowed
	case s.Shadow:
		return telemetry.DecisionShadow
	default:
		return telemetry.DecisionLimited
	}
}
