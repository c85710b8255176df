package main

import (
	"fmt"
	"slices"

	"github.com/penstock-gateway/penstock/bench/report"
)

// judge adds the figures of the series, with the targets of the product.
func (b *bench) judge() {
	var p50s []float64
	for _, s := range b.series {
		name := func(what string) string {
			return fmt.Sprintf("%s, one of %d routes changed: %s", s.name, s.routes, what)
		}
		bare := b.find("bare", s.routes)
		p50, limit := report.Quantile(s.served, 0.5), report.Quantile(bare.served, 0.5)
		control, envoy := s.controlCPU/s.n(), s.envoyCPU/s.n()
		bareControl, bareEnvoy := bare.controlCPU/bare.n(), bare.envoyCPU/bare.n()
		ours := s.name == "ours"

		b.report.Figures = append(b.report.Figures, report.Figure{
			Name: name("first right answer, p50"), Unit: "ms", Value: p50, Spread: []float64{s.served[0], s.served[len(s.served)-1]},
		})
		if ours {
			p50s = append(p50s, p50)
			b.report.Judge("<= 15", p50 <= 15)
			b.report.AddTarget(name("p50 against bare"), "x", p50/limit, "<= 3", p50 <= 3*limit)
			b.report.Add(name("call that stores only, p50"), "ms", report.Quantile(s.storedOnly, 0.5))
		}
		b.report.Add(name("first right answer, p99"), "ms", report.Quantile(s.served, 0.99))
		b.report.Add(name("call returns, p50"), "ms", report.Quantile(s.returned, 0.5))
		spread := func(v []float64) []float64 { return []float64{slices.Min(v), slices.Max(v)} }
		b.report.Figures = append(b.report.Figures,
			report.Figure{Name: name("CPU of the control plane"), Unit: "ms", Value: control, Spread: spread(s.blockControl)})
		if ours {
			b.report.AddTarget(name("CPU of the control plane against bare"), "x", control/bareControl, "<= 2", control <= 2*bareControl)
		}
		b.report.Figures = append(b.report.Figures,
			report.Figure{Name: name("CPU of Envoy's main thread"), Unit: "ms", Value: envoy, Spread: spread(s.blockEnvoy)})
		if ours {
			b.report.AddTarget(name("CPU of Envoy's main thread against bare"), "x", envoy/bareEnvoy, "<= 2", envoy <= 2*bareEnvoy)
		}
		b.report.Add(name("bytes that Envoy received"), "B", s.received/s.n())
		b.report.Add(name("RSS of the control plane"), "MiB", s.controlRSS)
		if most := map[int]float64{1000: 100, 10_000: 200}[s.routes]; ours && most > 0 {
			b.report.Judge(fmt.Sprintf("<= %.0f", most), s.controlRSS <= most)
		}
		b.report.Add(name("RSS of the control plane without files"), "MiB", s.controlAnon)
		if ours {
			b.report.Add(name("CPU of the control plane at rest"), "ms/s", s.rest)
		}
		b.report.Add(name("RSS of Envoy"), "MiB", s.envoyRSS)
		if ours && s.routes >= 100_000 {
			b.report.Judge("<= 120", s.envoyRSS <= 120)
		}
		b.report.Add(name("RSS of Envoy without files"), "MiB", s.envoyAnon)
		b.report.Add(name("stats lines of Envoy"), "", float64(s.statsLines))
	}
	if len(p50s) > 1 {
		flat := slices.Max(p50s) / slices.Min(p50s)
		b.report.AddTarget("ours, slowest p50 over fastest p50 of all sizes", "x", flat, "<= 2", flat <= 2)
	}
}
