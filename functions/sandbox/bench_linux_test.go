package sandbox

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// BenchmarkSpawn is from the start of a program to its end, plain and kept apart; the
// part before the program runs is start-ms.
func BenchmarkSpawn(b *testing.B) {
	program, err := exec.LookPath("true")
	if err != nil {
		b.Fatal(err)
	}
	for name, level := range map[string]Level{"plain": None, "sandbox": Best} {
		b.Run(name, func(b *testing.B) {
			plan, err := machine().Plan(Policy{Level: level, Scratch: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			c := Command{ID: "bench", Args: []string{program}, Dir: b.TempDir(), Env: map[string]string{"PATH": os.Getenv("PATH")}}
			var started time.Duration
			for b.Loop() {
				began := time.Now()
				p, err := plan.Start(c, (*exec.Cmd).Start)
				if err != nil {
					b.Fatal(err)
				}
				started += time.Since(began)
				if err := p.Ending(p.Cmd.Wait()); err != nil {
					b.Fatal(err)
				}
				p.Close()
			}
			b.ReportMetric(started.Seconds()*1000/float64(b.N), "start-ms")
		})
	}
}
