package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/penstock-gateway/penstock/bench/report"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// perHost is how many routes share a host, as in the peers' measurements.
const perHost = 10

func host(i int) string { return fmt.Sprintf("h%d.example.com", i/perHost) }

func route(i int, body string) *pb.Resource {
	return &pb.Resource{Kind: &pb.Resource_Route{Route: &pb.Route{
		Name:      fmt.Sprintf("projects/default/routes/bench-%d", i),
		Hostnames: []string{host(i)},
		Rules: []*pb.RouteRule{{
			Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: fmt.Sprintf("/r%d", i)}}}},
			Action:  &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200, Body: body}},
		}},
	}}}
}

// changes measures one more route, from the call to the first right answer.
func (b *bench) changes(ctx context.Context) error {
	rounds := 40
	if b.short {
		rounds = 3
	}
	have := 0
	for _, n := range []int{10, 1000} {
		var batch []*pb.Resource
		for ; have < n; have++ {
			batch = append(batch, route(have, "v0"))
		}
		start := time.Now()
		if err := b.apply(ctx, batch...); err != nil {
			return err
		}
		b.report.Add(fmt.Sprintf("apply of %d routes at once -> serving", len(batch)), "ms", milliseconds(time.Since(start)))
		var call, served []float64
		for i := range rounds {
			body := fmt.Sprintf("v%d-%d", n, i)
			id := n - 1
			begin := time.Now()
			if err := b.apply(ctx, route(id, body)); err != nil {
				return err
			}
			call = append(call, milliseconds(time.Since(begin)))
			if err := b.expect(ctx, id, body); err != nil {
				return err
			}
			served = append(served, milliseconds(time.Since(begin)))
		}
		for name, values := range map[string][]float64{"apply returns": call, "first right answer": served} {
			slices.Sort(values)
			b.report.Figures = append(b.report.Figures, report.Figure{
				Name: fmt.Sprintf("one route changed of %d, %s, p50", n, name), Unit: "ms",
				Value: report.Quantile(values, 0.5), Spread: []float64{values[0], values[len(values)-1]},
			})
			b.report.Add(fmt.Sprintf("one route changed of %d, %s, p99", n, name), "ms", report.Quantile(values, 0.99))
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (b *bench) apply(ctx context.Context, resources ...*pb.Resource) error {
	resp, err := b.config.Apply(ctx, &pb.ApplyRequest{Resources: resources})
	if err != nil {
		return err
	}
	if s := resp.GetResult().GetServing(); s.GetServing() != 1 || !s.GetComplete() {
		return fmt.Errorf("revision %d is not served: %v", resp.GetResult().GetRevision(), s)
	}
	return nil
}

// expect sends one request and wants the new answer: apply has returned.
func (b *bench) expect(ctx context.Context, i int, body string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.gateway+"/r"+strconv.Itoa(i), nil)
	if err != nil {
		return err
	}
	r.Host = host(i)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got := make([]byte, 64)
	n, _ := resp.Body.Read(got)
	if resp.StatusCode != http.StatusOK || string(got[:n]) != body {
		return fmt.Errorf("after apply returned, %s answers %d %q, want %q", r.URL, resp.StatusCode, got[:n], body)
	}
	return nil
}

func hostPort(addr string) (string, uint32) {
	h, p, _ := net.SplitHostPort(addr)
	n, _ := strconv.ParseUint(p, 10, 16)
	return h, uint32(n)
}
