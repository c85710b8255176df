package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func newFnScaleCommand() *cobra.Command {
	var wf writeFlags
	var lowest, highest, instances uint32
	var objective, queue string
	var concurrency, rps float64
	var idle time.Duration
	c := fnVerb("scale NAME [INSTANCES]", "Say how many instances a function has, or what their number follows", func(c *cobra.Command) {
		wf.add(c)
		f := c.Flags()
		f.Uint32Var(&lowest, "min", 0, "instances that are always there")
		f.Uint32Var(&highest, "max", 0, "never more than these")
		f.Uint32Var(&instances, "instances", 0, "a fixed number, whatever the load")
		f.StringVar(&objective, "objective", "", "a latency to keep, such as 'p99 <= 200ms'")
		f.Float64Var(&concurrency, "target-concurrency", 0, "requests at once for each instance")
		f.Float64Var(&rps, "target-rps", 0, "requests a second for each instance")
		f.DurationVar(&idle, "idle-timeout", 0, "without a request for so long, instances beyond the minimum end")
		f.StringVar(&queue, "queue", "", "direct, central or auto")
	}, func(cmd *cobra.Command, ctx context.Context, client *fnClient, name string) error {
		set := cmd.Flags().Changed
		if cmd.Flags().NArg() == 2 {
			if set("instances") {
				return errors.New("give the number of instances once: after the name or by --instances")
			}
			if err := cmd.Flags().Set("instances", cmd.Flags().Arg(1)); err != nil {
				return fmt.Errorf("INSTANCES %q is not a number of instances, such as 3", cmd.Flags().Arg(1))
			}
		}
		return client.change(ctx, cmd, name, wf.options(), func(f *pb.Function, _ *pb.DescribeFunctionResponse) error {
			if set("instances") {
				f.Instances, f.Scale = instances, nil
				return nil
			}
			f.Instances = 0
			if f.Scale == nil {
				f.Scale = &pb.Scale{}
			}
			s := f.Scale
			if set("min") {
				s.Min = lowest
			}
			if set("max") {
				s.Max = highest
			}
			if set("objective") || set("target-concurrency") || set("target-rps") {
				s.Objective, s.TargetConcurrency, s.TargetRps = objective, concurrency, rps
			}
			if set("idle-timeout") {
				s.IdleTimeout = durationpb.New(idle)
			}
			if set("queue") {
				mode, ok := pb.QueueMode_value["QUEUE_MODE_"+strings.ToUpper(queue)]
				if !ok {
					return fmt.Errorf("--queue %q is none of direct, central, auto", queue)
				}
				s.Queue = pb.QueueMode(mode)
			}
			return nil
		})
	})
	c.Args = cobra.RangeArgs(1, 2)
	c.Example = "  penstock fn scale hello 3\n  penstock fn scale hello --min 1 --max 10 --objective 'p99 <= 200ms'"
	return c
}

func newFnRollbackCommand() *cobra.Command {
	var wf writeFlags
	var to int64
	c := fnVerb("rollback NAME", "Give all requests to an older version", func(c *cobra.Command) {
		wf.add(c)
		c.Flags().Int64Var(&to, "to", 0, "number of the version (default: the last one that served before that which gets the requests)")
	}, func(cmd *cobra.Command, ctx context.Context, client *fnClient, name string) error {
		return client.change(ctx, cmd, name, wf.options(), func(f *pb.Function, d *pb.DescribeFunctionResponse) error {
			number := to
			if number == 0 {
				var err error
				if number, err = versionBefore(f, d); err != nil {
					return err
				}
			}
			f.Traffic = []*pb.Traffic{{Version: number, Weight: 100}}
			if f.Metadata.Annotations == nil {
				f.Metadata.Annotations = map[string]string{}
			}
			f.Metadata.Annotations[gateway.RolledBackAnnotation] = gateway.RolledBackByHand
			return nil
		})
	})
	c.Long = "Old instances serve on until those of the older version are ready. New deployments get no requests then,\n" +
		"until `penstock fn promote`, or a deployment that says so."
	return c
}

// versionBefore is the version to go back to: the one that shares the requests with
// the newest, else the last one that served before that which gets them.
func versionBefore(f *pb.Function, d *pb.DescribeFunctionResponse) (int64, error) {
	serving, newest := int64(0), false
	var weight uint32
	for _, t := range f.GetTraffic() {
		newest = newest || t.GetVersion() == 0 && t.GetWeight() > 0
		if t.GetVersion() != 0 && t.GetWeight() > weight {
			serving, weight = t.GetVersion(), t.GetWeight()
		}
	}
	if newest && serving != 0 {
		return serving, nil // it is the newest that is taken back
	}
	if serving == 0 {
		serving = d.GetCurrentVersion()
	}
	if number := gateway.VersionBefore(f, d.GetVersions(), serving); number != 0 {
		return number, nil
	}
	return 0, fmt.Errorf("%s has no version that served before the one that gets the requests: `penstock fn describe` shows which are kept; --to takes any of them", f.GetName())
}

func newFnPromoteCommand() *cobra.Command {
	var wf writeFlags
	return fnVerb("promote NAME", "Give all requests to the newest version, and to those that follow", func(c *cobra.Command) { wf.add(c) },
		func(cmd *cobra.Command, ctx context.Context, client *fnClient, name string) error {
			return client.change(ctx, cmd, name, wf.options(), func(f *pb.Function, _ *pb.DescribeFunctionResponse) error {
				f.Traffic = newest
				return nil
			})
		})
}

// newest gives all requests to the newest version, also of a function that was
// rolled back; no traffic at all would leave that as it is.
var newest = []*pb.Traffic{{Weight: 100}}

// splitFlags say what a deployment gets of the requests.
type splitFlags struct {
	tag       string
	percent   uint32
	noTraffic bool
	// said: --split was given.
	said func() bool
}

func (s *splitFlags) add(c *cobra.Command) {
	s.said = func() bool { return c.Flags().Changed("split") }
	c.Flags().StringVar(&s.tag, "tag", "", "a name for the new version: routes reach it by subset, whatever its weight")
	c.Flags().Uint32Var(&s.percent, "split", 100, "percent of the requests that the new version gets; the others stay where they are")
	c.Flags().BoolVar(&s.noTraffic, "no-traffic", false, "the new version gets no requests but by its tag")
}

// traffic is that of a function after a deployment of the newest version. old is the
// function before, nil for a new one, and current the number of its newest version then.
func (s *splitFlags) traffic(old *pb.Function, current int64) ([]*pb.Traffic, error) {
	percent, said := s.percent, s.said != nil && s.said()
	if s.noTraffic || s.tag != "" && !said && gateway.RolledBack(old) {
		percent = 0
	}
	switch {
	case percent > 100:
		return nil, fmt.Errorf("--split %d: it is a part of 100", percent)
	case percent == 100 && s.tag == "" && said:
		return newest, nil
	case percent == 100 && s.tag == "":
		return nil, nil // a rollback stays
	case percent == 100:
		return []*pb.Traffic{{Weight: 100, Tag: s.tag}}, nil
	case current == 0:
		return nil, fmt.Errorf("--split and --no-traffic need a version that gets the other requests, and there is none yet: deploy it first")
	}
	out, total := others(old, current)
	if percent > 0 || s.tag != "" {
		for _, t := range out {
			t.Weight *= 100 - percent
		}
		out = append(out, &pb.Traffic{Weight: percent * total, Tag: s.tag})
	}
	return reduced(out), nil
}

// shares is the sum of the weights that others gives, about.
const shares = 10_000

// others are the versions that get requests before a deployment, by number, and the
// sum of their weights. Their tags go: the new version may take one over.
func others(old *pb.Function, current int64) (out []*pb.Traffic, total uint32) {
	sum := uint64(0)
	for _, t := range old.GetTraffic() {
		sum += uint64(t.GetWeight())
	}
	if sum == 0 {
		return []*pb.Traffic{{Version: current, Weight: 1}}, 1
	}
	for _, t := range old.GetTraffic() {
		if t.GetWeight() == 0 {
			continue
		}
		number := cmp.Or(t.GetVersion(), current)
		weight := uint32(max(1, uint64(t.GetWeight())*shares/sum))
		out, total = append(out, &pb.Traffic{Version: number, Weight: weight}), total+weight
	}
	return out, total
}

// reduced is traffic with the smallest whole weights of the same shares.
func reduced(traffic []*pb.Traffic) []*pb.Traffic {
	divisor := uint32(0)
	for _, t := range traffic {
		for a := t.GetWeight(); a != 0; {
			divisor, a = a, divisor%a
		}
	}
	for _, t := range traffic {
		t.Weight /= max(divisor, 1)
	}
	if len(traffic) == 1 {
		traffic[0].Weight = 100
	}
	return traffic
}

// trafficText is the traffic in short: "17 90%, newest 10% (canary)".
func trafficText(f *pb.Function) string {
	total := uint64(0)
	for _, t := range f.GetTraffic() {
		total += uint64(t.GetWeight())
	}
	var out []string
	for _, t := range f.GetTraffic() {
		text := "newest"
		if t.GetVersion() != 0 {
			text = strconv.FormatInt(t.GetVersion(), 10)
		}
		text += fmt.Sprintf(" %.4g%%", 100*float64(t.GetWeight())/float64(max(total, 1)))
		if t.GetTag() != "" {
			text += " (" + t.GetTag() + ")"
		}
		out = append(out, text)
	}
	if len(out) == 0 {
		return "newest 100%"
	}
	return strings.Join(out, ", ")
}
