package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/bench/proc"
	"github.com/penstock-gateway/penstock/bench/report"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func seconds(n int64) *durationpb.Duration { return &durationpb.Duration{Seconds: n} }

// many measures an installation with many functions of which few are called.
func (b *bench) many(ctx context.Context) error {
	count, active, rounds := 1000, 50, 15
	if b.short {
		count, active, rounds = 20, 3, 2
	}
	var all []*pb.Resource
	scale := &pb.Scale{Max: 2, IdleTimeout: seconds(3600)}
	for i := range count {
		all = append(all, b.function(fmt.Sprintf("many-%d", i), scale)...)
	}
	start := time.Now()
	if err := b.apply(ctx, all...); err != nil {
		return err
	}
	b.report.Add(fmt.Sprintf("%d functions deployed at once -> serving", count), "s", time.Since(start).Seconds())
	c := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	var first sync.Mutex
	var firsts []float64
	var wg sync.WaitGroup
	errs := make(chan error, active)
	for n := range 4 { // four callers wake the active ones
		wg.Go(func() {
			for i := n; i < active; i += 4 {
				d, _, err := b.get(ctx, c, fmt.Sprintf("many-%d", i))
				if err != nil {
					errs <- err
					return
				}
				first.Lock()
				firsts = append(firsts, milliseconds(d))
				first.Unlock()
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	b.report.AddRounds(fmt.Sprintf("first answers of %d of them, 4 at once", active), "ms", firsts)
	var deploys, answers []float64
	for i := range rounds {
		id := fmt.Sprintf("one-more-%d", i)
		start := time.Now()
		if err := b.apply(ctx, b.function(id, scale)...); err != nil {
			return err
		}
		deploys = append(deploys, milliseconds(time.Since(start)))
		if _, _, err := b.get(ctx, c, id); err != nil {
			return err
		}
		answers = append(answers, milliseconds(time.Since(start)))
	}
	b.report.AddRounds(fmt.Sprintf("one more function deployed, %d there, %d active, p50", count, active), "ms", deploys)
	b.report.AddRounds("from deploying it to its first answer, p50", "ms", answers)
	slices.Sort(answers)
	b.report.Add("from deploying it to its first answer, p90", "ms", report.Quantile(answers, 0.9))
	processes, err := b.processes()
	if err != nil {
		return err
	}
	for _, p := range processes {
		mib, _, err := proc.Memory(p.Pid)
		if err != nil {
			return err
		}
		b.report.Add(fmt.Sprintf("RSS of %s, %d functions, %d active", p.Name, count, active), "MiB", mib)
	}
	return nil
}
