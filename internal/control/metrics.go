package control

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/penstock-gateway/penstock/telemetry"
)

// collector reads the state of a Core when Prometheus asks.
type collector struct{ core *Core }

// Collector returns the metrics of the control plane.
func (c *Core) Collector() prometheus.Collector { return collector{c} }

// Describe sends nothing: which series there are depends on the state.
func (collector) Describe(chan<- *prometheus.Desc) {}

func (m collector) Collect(out chan<- prometheus.Metric) {
	send := func(kind prometheus.ValueType, name, help string, value float64, labels ...string) {
		var names, values []string
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
	}
	c := m.core
	send(prometheus.GaugeValue, telemetry.MetricControlRevision, "Revision that this replica has.", float64(c.Snapshot().Revision()))
	send(prometheus.GaugeValue, telemetry.MetricControlProblems, "Things that are not served as written.", float64(len(c.problems())))
	refused := 0.0
	if _, err := c.store.Refusing(); err != nil {
		refused = 1
	}
	send(prometheus.GaugeValue, telemetry.MetricStoreRefusing, "1 while the store takes no changes, for lack of space.", refused)
	proxies, instances := map[string]int{}, map[string]int{}
	for _, p := range c.delivery.Proxies() {
		proxies[string(p.State)]++
	}
	for state, n := range proxies {
		send(prometheus.GaugeValue, telemetry.MetricControlProxies, "Connected proxies.", float64(n), telemetry.LabelState, state)
	}
	for _, i := range c.Instances("") {
		instances[i.GetState().String()]++
	}
	for state, n := range instances {
		send(prometheus.GaugeValue, telemetry.MetricControlInstances, "Function instances.", float64(n), telemetry.LabelState, state)
	}
	for why, n := range c.admission.FailedHandshakes() {
		send(prometheus.CounterValue, telemetry.MetricControlHandshakes, "TLS handshakes that failed on the xDS port.", float64(n), telemetry.LabelReason, why)
	}
	for t, n := range c.delivery.Stats().Types {
		for _, s := range []struct {
			name, help string
			value      int64
		}{
			{telemetry.MetricXDSPushes, "Responses sent to proxies.", n.Pushes},
			{telemetry.MetricXDSSent, "Resources sent to proxies.", n.Sent},
			{telemetry.MetricXDSRemoved, "Resources removed from proxies.", n.Removed},
			{telemetry.MetricXDSAcks, "Responses that a proxy acknowledged.", n.Acks},
			{telemetry.MetricXDSNacks, "Responses that a proxy refused.", n.Nacks},
		} {
			send(prometheus.CounterValue, s.name, s.help, float64(s.value), telemetry.LabelType, t.Short())
		}
	}
}
