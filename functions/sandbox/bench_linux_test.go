package sandbox

import (
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

// BenchmarkSpawn is from the start of a program to its end, plain and kept apart; the
// median of the part before the program runs is p50-start-ms. "ready" is with waiting
// launchers and a pause between starts, in which they are replaced.
func BenchmarkSpawn(b *testing.B) {
	program, err := exec.LookPath("true")
	if err != nil {
		b.Fatal(err)
	}
	start := func(c *exec.Cmd) error {
		if c.Process != nil {
			return nil
		}
		return c.Start()
	}
	for name, level := range map[string]Level{"plain": None, "sandbox": Best, "ready": Best} {
		b.Run(name, func(b *testing.B) {
			if name == "ready" {
				defer machine().KeepReady(4, start)()
			}
			plan, err := machine().Plan(Policy{Level: level, Scratch: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			for _, want := range []string{MeansNetwork, MeansOutbound, MeansRoot, MeansPIDs, MeansLandlock, MeansSeccomp, MeansReadOnly, MeansUID} {
				if level == Best && (want != MeansUID || os.Geteuid() == 0) && !slices.Contains(plan.Means, want) {
					b.Fatalf("%s is not in force, so the figure would be another's: %v", want, plan.Missing)
				}
			}
			c := Command{ID: "bench", Args: []string{program}, Dir: b.TempDir(), Env: map[string]string{"PATH": os.Getenv("PATH")}}
			var starts []time.Duration
			for b.Loop() {
				began := time.Now()
				p, err := plan.Start(c, start)
				if err != nil {
					b.Fatal(err)
				}
				starts = append(starts, time.Since(began))
				if err := p.Ending(p.Cmd.Wait()); err != nil {
					b.Fatal(err)
				}
				p.Close()
				if name == "ready" {
					b.StopTimer()
					awaitReady(b, machine(), 4)
					b.StartTimer()
				}
			}
			slices.Sort(starts)
			b.ReportMetric(starts[len(starts)/2].Seconds()*1000, "p50-start-ms")
		})
	}
}

// awaitReady waits until so many launchers wait.
func awaitReady(b *testing.B, m *Machine, n int) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		p := m.ready.pool.Load()
		p.mu.Lock()
		ready := len(p.ready)
		p.mu.Unlock()
		if ready >= n {
			return
		}
	}
	b.Fatal("the pool is not filled again")
}
