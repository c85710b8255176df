package scale

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func TestParseObjective(t *testing.T) {
	for in, want := range map[string]Objective{
		"":               {},
		"p99 <= 200ms":   {Quantile: 0.99, Limit: 200 * time.Millisecond},
		"p99.9<=1.5s":    {Quantile: 0.999, Limit: 1500 * time.Millisecond},
		"  p50  <=  1h ": {Quantile: 0.5, Limit: time.Hour},
	} {
		got, err := ParseObjective(in)
		if err != nil || math.Abs(got.Quantile-want.Quantile) > 1e-12 || got.Limit != want.Limit {
			t.Errorf("%q: %v, %v, want %v", in, got, err, want)
		}
		if again, err := ParseObjective(got.String()); err != nil || again != got {
			t.Errorf("%q is written %q and read as %v, %v", in, got, again, err)
		}
	}
	for in, want := range map[string]string{
		"200ms":          `there is no "<="`,
		"p99 < 200ms":    `there is no "<="`,
		"99 <= 200ms":    "does not begin with a percentile",
		"p <= 200ms":     `"p" is not a percentile`,
		"p40 <= 200ms":   "not a percentile from p50",
		"p100 <= 200ms":  "not a percentile from p50",
		"pNaN <= 200ms":  "not a percentile from p50",
		"p99 <= 200":     "not a duration",
		"p99 <= 0s":      "not a duration from 1ms to 1h",
		"p99 <= -5ms":    "not a duration from 1ms to 1h",
		"p99 <= 1000h":   "not a duration from 1ms to 1h",
		"p99 <= 1s <= 2": "not a duration",
	} {
		if _, err := ParseObjective(in); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"p99 <= 200ms"`) {
			t.Errorf("%q: %v, want %s and an example", in, err, want)
		}
	}
}

func TestConfigOf(t *testing.T) {
	lambda := &pb.Function_Lambda{Lambda: &pb.LambdaContract{}}
	server := &pb.Function_Server{Server: &pb.ServerContract{}}
	for name, c := range map[string]struct {
		f    *pb.Function
		want Config
	}{
		"fixed":                         {&pb.Function{Contract: lambda, Instances: 3}, Config{Min: 3, Max: 3, Concurrency: 1}},
		"nothing":                       {&pb.Function{Contract: server}, Config{Min: 1, Max: 1, Concurrency: 100}},
		"defaults":                      {&pb.Function{Contract: lambda, Scale: &pb.Scale{}}, Config{Max: DefaultMax, Concurrency: 1}},
		"min beyond the default of max": {&pb.Function{Contract: lambda, Scale: &pb.Scale{Min: 20}}, Config{Min: 20, Max: 20, Concurrency: 1}},
		"objective": {&pb.Function{Contract: server, Concurrency: 7, Scale: &pb.Scale{Min: 1, Max: 4, Objective: "p99 <= 200ms", IdleTimeout: durationpb.New(time.Second)}},
			Config{Min: 1, Max: 4, Concurrency: 7, Objective: Objective{0.99, 200 * time.Millisecond}, IdleTimeout: time.Second}},
		"rps": {&pb.Function{Contract: server, Scale: &pb.Scale{TargetRps: 5, Window: durationpb.New(time.Second)}}, Config{Max: 10, Concurrency: 100, TargetRPS: 5, Window: time.Second}},
	} {
		if got, err := ConfigOf(c.f); err != nil || got != c.want.withDefaults() {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want.withDefaults())
		}
	}
	for want, s := range map[string]*pb.Scale{
		"min is 5, more than max, which is 2":          {Min: 5, Max: 2},
		`scale: objective "fast"`:                      {Objective: "fast"},
		"objective and target_rps are set: choose one": {Objective: "p99 <= 1s", TargetRps: 3},
	} {
		if _, err := ConfigOf(&pb.Function{Contract: lambda, Scale: s}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", s, err, want)
		}
	}
}

// TestMoments compares the decaying sums with the plain formulas, and the identity
// Var[T] = Var[t] + Var[r] + 2 Cov[t,r] with t and r that depend on each other.
func TestMoments(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var s Split
	for range 20_000 {
		common := r.ExpFloat64()
		handler := 0.050 + 0.020*common
		rest := 0.010 + 0.005*common + 0.002*r.Float64()
		s.Add(time.Duration(handler*1e9), time.Duration((handler+rest)*1e9))
	}
	near := func(what string, got, want, part float64) {
		t.Helper()
		if math.Abs(got-want) > part*math.Abs(want) {
			t.Errorf("%s is %g, want %g", what, got, want)
		}
	}
	total, handler, rest := s.T(), s.S(), s.R()
	near("E[T]", total.Mean, handler.Mean+rest.Mean, 1e-9)
	near("Var[T]", total.Var, handler.Var+rest.Var+2*s.Cov(), 1e-9)
	near("E[t]", handler.Mean, 0.070, 0.05)
	near("sd[t]", handler.SD(), 0.020, 0.15)
	near("skewness of an exponential time", handler.Skew, 2, 0.4)
	near("Cov[t,r]", s.Cov(), 0.020*0.005, 0.35)
	if total.Count != 20_000 {
		t.Errorf("%g values counted", total.Count)
	}
	// A function that changed is known again after some thousand requests.
	for range 5_000 {
		s.Add(5*time.Millisecond, 6*time.Millisecond)
	}
	near("E[T] after a change", s.T().Mean, 0.006, 0.15)
	var few Sums
	few.Add(1)
	few.Add(3)
	few.Add(math.NaN())
	if m := few.Moments(); m.Count != 2 || math.Abs(m.Mean-2) > 0.01 || math.Abs(m.Var-2) > 0.02 {
		t.Errorf("1 and 3 have %+v", m)
	}
}

// TestErlangC compares with printed values of the formula.
func TestErlangC(t *testing.T) {
	for _, c := range []struct {
		slots      int
		busy, want float64
	}{{1, 0.5, 0.5}, {2, 1, 1.0 / 3}, {5, 4, 0.5541}, {10, 8, 0.4092}, {3, 3, 1}, {3, 9, 1}, {4, 0, 0}, {100, 90, 0.2168}} {
		if got := erlangC(c.slots, c.busy); math.Abs(got-c.want) > 6e-4 {
			t.Errorf("%d slots, %g busy: %g, want %g", c.slots, c.busy, got, c.want)
		}
	}
	// The limit joins the recursion.
	for _, beta := range []float64{0.2, 1, 2, 3} {
		busy := exactSlots - beta*math.Sqrt(exactSlots)
		exact, limit := erlangC(exactSlots, busy), erlangC(exactSlots+1, busy+1)
		if math.Abs(exact-limit) > 0.1*exact {
			t.Errorf("beta %g: exact %g, limit %g", beta, exact, limit)
		}
	}
}

// TestShapes compares the probability of late requests with those drawn, for four
// kinds of time, and with what a normal and a lognormal distribution of the same
// mean and variance say: of the three only the one used is near for all.
func TestShapes(t *testing.T) {
	const n = 200_000
	worst := map[string]float64{}
	for name, draw := range map[string]func(*rand.Rand) float64{
		"normal":      func(r *rand.Rand) float64 { return max(0, 0.060+0.0224*r.NormFloat64()) },
		"exponential": func(r *rand.Rand) float64 { return 0.060 * r.ExpFloat64() },
		"gamma of 4": func(r *rand.Rand) float64 {
			return 0.015 * (r.ExpFloat64() + r.ExpFloat64() + r.ExpFloat64() + r.ExpFloat64())
		},
		"lognormal":                 func(r *rand.Rand) float64 { return 0.060 * math.Exp(0.4*r.NormFloat64()) },
		"base and exponential tail": func(r *rand.Rand) float64 { return 0.040 + 0.020*r.ExpFloat64() },
	} {
		r := rand.New(rand.NewPCG(7, 7))
		values := make([]float64, n)
		var m1, m2, m3 float64
		for i := range values {
			values[i] = draw(r)
			m1 += values[i] / n
		}
		for _, v := range values {
			m2 += (v - m1) * (v - m1) / n
			m3 += (v - m1) * (v - m1) * (v - m1) / n
		}
		slices.Sort(values)
		m := Moments{Count: n, Mean: m1, Var: m2, Skew: m3 / math.Pow(m2, 1.5)}
		s := newShape(m)
		sigma := math.Sqrt(math.Log(1 + m2/(m1*m1)))
		for _, q := range []float64{0.9, 0.99} {
			x := values[int(q*n)]
			off := func(late float64) float64 { return max(late/(1-q), (1-q)/max(late, 1e-9)) }
			got := map[string]float64{
				"used": s.above(x), "normal": normalCDF((m1 - x) / m.SD()),
				"lognormal": normalCDF((math.Log(m1) - sigma*sigma/2 - math.Log(x)) / sigma),
			}
			for k, v := range got {
				worst[k] = max(worst[k], off(v))
			}
			t.Logf("%s: %.0f %% are late; used %.3g %%, normal %.3g %%, lognormal %.3g %%", name, 100*(1-q), 100*got["used"], 100*got["normal"], 100*got["lognormal"])
		}
		if got, want := s.quantile(0.99), values[int(0.99*n)]; math.Abs(got-want) > 0.05*want {
			t.Errorf("%s: p99 is %g, want %g", name, got, want)
		}
	}
	t.Logf("wrong by a factor of at most %v", worst)
	if worst["used"] > 1.35 || worst["used"] > worst["normal"] || worst["used"] > worst["lognormal"] {
		t.Errorf("late requests are wrong by a factor of %v", worst)
	}
}
