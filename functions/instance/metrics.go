package instance

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Names of the metrics of functions. The label "function" is the full name;
// its values are as many as functions exist.
const (
	// MetricRequests counts requests by function and result: ok, refused,
	// handler-error, bad-response, too-large, died, deadline, slow-body, canceled,
	// aborted.
	MetricRequests = "penstock_function_requests_total"
	// MetricExecution is the handler's own time t of an invocation.
	MetricExecution = "penstock_function_execution_seconds"
	// MetricResponse is all other time r that the instance needed for the answer:
	// queue, conversion, sending. T = t + r.
	MetricResponse = "penstock_function_response_seconds"
	// MetricStart is the time from start to ready.
	MetricStart = "penstock_function_start_seconds"
	// MetricExits counts processes that ended unasked or did not start.
	MetricExits = "penstock_function_failures_total"
	// MetricDropped counts bytes of output that were not logged.
	MetricDropped = "penstock_function_output_dropped_bytes_total"
)

// Metrics are the metrics of all functions of a runner.
type Metrics struct {
	requests                   *prometheus.CounterVec
	execution, response, start *prometheus.HistogramVec
	failures, droppedBytes     *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them when r is not nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"function"})
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"function"}, labels...))
	}
	requestBuckets := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900}
	m := &Metrics{
		requests:     counter(MetricRequests, "Requests by result.", "result"),
		execution:    histogram(MetricExecution, "The handler's own time.", requestBuckets),
		response:     histogram(MetricResponse, "Time besides the handler's own: queue, conversion, sending.", requestBuckets),
		start:        histogram(MetricStart, "Time from start to ready.", []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}),
		failures:     counter(MetricExits, "Processes that ended unasked or did not become ready."),
		droppedBytes: counter(MetricDropped, "Bytes of output that were not logged because there was too much."),
	}
	if r != nil {
		r.MustRegister(m.requests, m.execution, m.response, m.start, m.failures, m.droppedBytes)
	}
	return m
}

// Forget drops the series of a function that is gone.
func (m *Metrics) Forget(function string) {
	l := prometheus.Labels{"function": function}
	m.requests.DeletePartialMatch(l)
	m.execution.DeletePartialMatch(l)
	m.response.DeletePartialMatch(l)
	m.start.DeletePartialMatch(l)
	m.failures.DeletePartialMatch(l)
	m.droppedBytes.DeletePartialMatch(l)
}

// functionMetrics are the metrics of one function. Its methods work on nil.
type functionMetrics struct {
	all      *Metrics
	function string
}

func (m *Metrics) of(function string) *functionMetrics {
	if m == nil {
		return nil
	}
	return &functionMetrics{m, function}
}

func (f *functionMetrics) request(result string, own, total time.Duration) {
	if f == nil {
		return
	}
	f.all.requests.WithLabelValues(f.function, result).Inc()
	if own > 0 {
		f.all.execution.WithLabelValues(f.function).Observe(own.Seconds())
		f.all.response.WithLabelValues(f.function).Observe(max(total-own, 0).Seconds())
	}
}

func (f *functionMetrics) started(d time.Duration) {
	if f != nil {
		f.all.start.WithLabelValues(f.function).Observe(d.Seconds())
	}
}

func (f *functionMetrics) failed() {
	if f != nil {
		f.all.failures.WithLabelValues(f.function).Inc()
	}
}

func (f *functionMetrics) dropped(n int) {
	if f != nil {
		f.all.droppedBytes.WithLabelValues(f.function).Add(float64(n))
	}
}
