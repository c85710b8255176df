package relay

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/penstock-gateway/penstock/telemetry"
)

// registerMetrics makes metrics of the same counters that Status returns.
func (r *Relay) registerMetrics(to prometheus.Registerer) error {
	gauge := func(name, help string, value func(Status) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(r.Status()) })
	}
	counter := func(name, help string, labels prometheus.Labels, value func() int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(value()) })
	}
	dropped := func(reason string, value func() int64) prometheus.Collector {
		return counter(telemetry.MetricRelayDroppedSpans, "Spans that were lost: the buffer was full, the collector refused them, or the relay ended.",
			prometheus.Labels{telemetry.LabelReason: reason}, value)
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		gauge(telemetry.MetricRelayBufferedBytes, "Bytes that wait for the collector.", func(s Status) float64 { return float64(s.BufferedBytes) }),
		gauge(telemetry.MetricRelayBufferedRequests, "Export requests that wait for the collector.", func(s Status) float64 { return float64(s.BufferedRequests) }),
		gauge(telemetry.MetricRelayCollectorUp, "1 when the last call of the collector succeeded.", func(s Status) float64 {
			if s.CollectorUp {
				return 1
			}
			return 0
		}),
		counter(telemetry.MetricRelayReceivedSpans, "Spans that were acknowledged to senders.", nil, r.received.Load),
		counter(telemetry.MetricRelayForwardedSpans, "Spans that the collector took.", nil, r.forwarded.Load),
		dropped("full", func() int64 { return r.dropped.Load() - r.atEnd.Load() }),
		dropped("shutdown", r.atEnd.Load),
		dropped("refused", r.refused.Load),
	} {
		errs = append(errs, to.Register(c))
	}
	return errors.Join(errs...)
}
