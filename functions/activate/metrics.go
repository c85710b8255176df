package activate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Names of the metrics. The label "function" is the full name.
const (
	// MetricColdStart is how long requests waited for an instance to start.
	MetricColdStart = "penstock_function_cold_start_seconds"
	// MetricRefused counts requests that got no instance, by reason: queue-full,
	// queue-timeout, crash-loop, cannot-start, stopping.
	MetricRefused = "penstock_function_activation_refused_total"
	// MetricCanceled counts callers that went away while they waited.
	MetricCanceled = "penstock_function_activation_canceled_total"
)

// Metrics are those of all activators of a runner.
type Metrics struct {
	cold     *prometheus.HistogramVec
	refused  *prometheus.CounterVec
	canceled *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them when r is not nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		cold: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: MetricColdStart, Help: "Wait of requests for an instance to start.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"function"}),
		refused:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: MetricRefused, Help: "Requests that got no instance."}, []string{"function", "reason"}),
		canceled: prometheus.NewCounterVec(prometheus.CounterOpts{Name: MetricCanceled, Help: "Callers that went away while they waited for an instance."}, []string{"function"}),
	}
	if r != nil {
		r.MustRegister(m.cold, m.refused, m.canceled)
	}
	return m
}

// Forget drops the series of a function that is gone.
func (m *Metrics) Forget(function string) {
	if m == nil {
		return
	}
	l := prometheus.Labels{"function": function}
	m.cold.DeletePartialMatch(l)
	m.refused.DeletePartialMatch(l)
	m.canceled.DeletePartialMatch(l)
}

func (m *Metrics) coldStart(function string, d time.Duration) {
	if m != nil {
		m.cold.WithLabelValues(function).Observe(d.Seconds())
	}
}

func (m *Metrics) refuse(function, reason string) {
	if m != nil {
		m.refused.WithLabelValues(function, reason).Inc()
	}
}

func (m *Metrics) cancel(function string) {
	if m != nil {
		m.canceled.WithLabelValues(function).Inc()
	}
}
