package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func newFnListCommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use: "ls", Short: "List functions with what they did", Args: cobra.NoArgs, Aliases: []string{"list"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, client, err := cf.dialFn(cmd.Context())
			if err != nil {
				return err
			}
			defer client.conn.Close()
			var all []*pb.Function
			for token := ""; ; {
				page, err := client.ListFunctions(ctx, &pb.ListFunctionsRequest{Parent: "projects/" + cf.project, PageSize: 1000, PageToken: token})
				if err != nil {
					return err
				}
				all = append(all, page.GetFunctions()...)
				if token = page.GetNextPageToken(); token == "" {
					break
				}
			}
			if cf.output != "text" {
				var list []gateway.Object
				for _, f := range all {
					list = append(list, f)
				}
				return printObjects(cmd.OutOrStdout(), cf.output, list, true)
			}
			return client.listTable(ctx, cmd.OutOrStdout(), all)
		},
	}
	cf.add(c)
	return c
}

func (c *fnClient) listTable(ctx context.Context, w io.Writer, all []*pb.Function) error {
	var failed error
	table(w, "NAME CONTRACT INSTANCES REQUESTS ERRORS COLD E[T] TRAFFIC STATUS", func(row func(...any)) {
		for _, f := range all {
			d, err := c.ops.DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: f.GetName()})
			if err != nil {
				failed = err
				return
			}
			ready := 0
			for _, i := range d.GetInstances() {
				if i.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
					ready++
				}
			}
			s := sumStats(d.GetStats())
			row(f.GetName()[strings.LastIndexByte(f.GetName(), '/')+1:], contract.Text(f), ready, s.GetRequests(), s.GetErrors(), s.GetColdStarts(),
				milliseconds(s.GetMeanT()+s.GetMeanR()), trafficText(f), oneLine(f))
		}
	})
	return failed
}

// sumStats adds up what the versions of a function did.
func sumStats(all []*pb.FunctionStats) *pb.FunctionStats {
	out := &pb.FunctionStats{}
	for _, s := range all {
		a, b := float64(out.Requests), float64(s.GetRequests())
		if a+b > 0 {
			out.MeanT, out.MeanR = (out.MeanT*a+s.GetMeanT()*b)/(a+b), (out.MeanR*a+s.GetMeanR()*b)/(a+b)
		}
		out.Requests += s.GetRequests()
		out.Errors += s.GetErrors()
		out.ColdStarts += s.GetColdStarts()
		out.Refused += s.GetRefused()
		out.InstanceSeconds += s.GetInstanceSeconds()
		out.MemoryMibSeconds += s.GetMemoryMibSeconds()
		out.CpuSeconds += s.GetCpuSeconds()
	}
	return out
}

func milliseconds(seconds float64) string { return fmt.Sprintf("%.1fms", 1000*seconds) }

func newFnDescribeCommand() *cobra.Command {
	return fnVerb("describe NAME", "Tell all that is known of a function: versions, instances, times, cost", nil,
		func(cmd *cobra.Command, ctx context.Context, client *fnClient, name string) error {
			d, err := client.ops.DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: name})
			if err != nil {
				return err
			}
			if o, _ := cmd.Flags().GetString("output"); o != "text" {
				return printMessage(cmd.OutOrStdout(), o, d)
			}
			describe(cmd.OutOrStdout(), d)
			return nil
		})
}

func describe(w io.Writer, d *pb.DescribeFunctionResponse) {
	f := d.GetFunction()
	fmt.Fprintf(w, "%s\n", f.GetName())
	fmt.Fprintf(w, "  contract   %s, source %s\n", contract.Text(f), shortSource(f.GetSource()))
	for _, c := range f.GetStatus().GetConditions() {
		mark := "ok"
		if !c.GetOk() {
			mark = "no"
		}
		fmt.Fprintf(w, "  %-10s %s: %s\n", c.GetType(), mark, strings.ReplaceAll(c.GetMessage(), "\n", "\n             "))
	}
	fmt.Fprintf(w, "  traffic    %s\n", trafficText(f))
	for _, line := range environmentText(f) {
		fmt.Fprintf(w, "  env        %s\n", line)
	}
	for _, r := range d.GetRoutes() {
		fmt.Fprintf(w, "  route      %s\n", strings.TrimPrefix(r, "projects/default/"))
	}
	for _, name := range slices.Sorted(maps.Keys(d.GetBuildOutput())) {
		fmt.Fprintf(w, "\nthe last lines of the build of %s\n", name[strings.LastIndexByte(name, '/')+1:])
		for line := range strings.Lines(d.GetBuildOutput()[name]) {
			fmt.Fprintf(w, "  %s\n", strings.TrimRight(line, "\r\n"))
		}
	}
	fmt.Fprintln(w, "\nversions")
	table(w, "NUMBER CREATED FIRST-SERVED REQUESTS SOURCE", func(row func(...any)) {
		for _, v := range d.GetVersions() {
			served := "never"
			if t := v.GetFirstServeTime(); t != nil {
				served = t.AsTime().Local().Format(time.DateTime)
			}
			row(v.GetNumber(), v.GetMetadata().GetCreateTime().AsTime().Local().Format(time.DateTime), served,
				requestsOf(f, v.GetNumber(), d.GetCurrentVersion()), shortSource(v.GetSpec().GetSource()))
		}
	})
	fmt.Fprintln(w, "\ninstances")
	table(w, "ID VERSION STATE PID ADDRESS RESTARTS ISOLATION", func(row func(...any)) {
		for _, i := range d.GetInstances() {
			row(i.GetId(), instanceVersion(i), strings.TrimPrefix(i.GetState().String(), "INSTANCE_STATE_"), i.GetPid(),
				instanceAddress(i), i.GetRestarts(), strings.Join(i.GetIsolation(), ","))
		}
	})
	for _, s := range d.GetStates() {
		for _, m := range s.GetIsolationMissing() {
			fmt.Fprintf(w, "  not isolated by %s\n", m)
		}
	}
	for _, s := range d.GetStats() {
		describeStats(w, s)
	}
}

// requestsOf is the part of the requests that a version gets, in words.
func requestsOf(f *pb.Function, number, current int64) string {
	if len(f.GetTraffic()) == 0 {
		return map[bool]string{true: "all", false: "none"}[number == current]
	}
	var mine, all uint64
	var tags []string
	for _, t := range f.GetTraffic() {
		all += uint64(t.GetWeight())
		if t.GetVersion() == number || t.GetVersion() == 0 && number == current {
			mine += uint64(t.GetWeight())
			if t.GetTag() != "" {
				tags = append(tags, t.GetTag())
			}
		}
	}
	part := "none"
	switch {
	case all > 0 && mine == all:
		part = "all"
	case mine > 0:
		part = fmt.Sprintf("%.3g%%", 100*float64(mine)/float64(all))
	}
	if len(tags) > 0 {
		part += " (tag " + strings.Join(tags, ", ") + ")"
	}
	return part
}

// instanceVersion is the number of the version that an instance runs. Of one of an older
// runner, which does not say it, only that of a deployment by number is known.
func instanceVersion(i *pb.Instance) string {
	number := i.GetVersion()
	if number == 0 {
		_, number = gateway.FunctionOf(i.GetFunction())
	}
	if number == 0 {
		return ""
	}
	return fmt.Sprint(number)
}

// environmentText is a function's own environment, a line each; of secrets only where
// they come from.
func environmentText(f *pb.Function) []string {
	lines := map[string]string{}
	for k, v := range f.GetEnv() {
		lines[k] = fmt.Sprintf("%s=%s", k, quoteBare(v))
	}
	for k, s := range f.GetEnvSecrets() {
		lines[k] = fmt.Sprintf("%s from secret %s, key %s", k, s.GetSecret(), s.GetKey())
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(lines)) {
		out = append(out, lines[k])
	}
	return out
}

// quoteBare quotes a text that is not one plain word.
func quoteBare(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
		return strconv.Quote(s)
	}
	return s
}

// describeStats prints the times T = t + r and the cost of one deployment.
func describeStats(w io.Writer, s *pb.FunctionStats) {
	fmt.Fprintf(w, "\n%s since its runner started\n", s.GetFunction()[strings.LastIndexByte(s.GetFunction(), '/')+1:])
	fmt.Fprintf(w, "  requests   %d, %d failed, %d waited for a start, %d turned away; %.1f/s and %.1f at once lately\n",
		s.GetRequests(), s.GetErrors(), s.GetColdStarts(), s.GetRefused(), s.GetRate(), s.GetConcurrency())
	variance := s.GetSdT()*s.GetSdT() + s.GetSdR()*s.GetSdR() + 2*s.GetCovTr()
	fmt.Fprintf(w, "  time       E[T] = t %s + r %s = %s\n", milliseconds(s.GetMeanT()), milliseconds(s.GetMeanR()), milliseconds(s.GetMeanT()+s.GetMeanR()))
	fmt.Fprintf(w, "             sd[T] = sqrt(t %s² + r %s² + 2 x cov %.3gms²) = %s\n",
		milliseconds(s.GetSdT()), milliseconds(s.GetSdR()), 1e6*s.GetCovTr(), milliseconds(math.Sqrt(max(variance, 0))))
	fmt.Fprintf(w, "  start      %s on average\n", milliseconds(s.GetMeanStart()))
	per := 1 / max(1, float64(s.GetRequests()))
	fmt.Fprintf(w, "  cost       %.1f instance-s, %.1f MiB-s, %.2f CPU-s; for one request %.1f instance-ms, %.1f MiB-ms, %.2f CPU-ms\n",
		s.GetInstanceSeconds(), s.GetMemoryMibSeconds(), s.GetCpuSeconds(),
		1000*per*s.GetInstanceSeconds(), 1000*per*s.GetMemoryMibSeconds(), 1000*per*s.GetCpuSeconds())
}

func newFnExplainScaleCommand() *cobra.Command {
	return fnVerb("explain-scale NAME", "Print the arithmetic behind the number of instances", nil,
		func(cmd *cobra.Command, ctx context.Context, client *fnClient, name string) error {
			d, err := client.ops.DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: name})
			if err != nil {
				return err
			}
			if o, _ := cmd.Flags().GetString("output"); o != "text" {
				return printMessage(cmd.OutOrStdout(), o, &pb.DescribeFunctionResponse{Decisions: d.GetDecisions()})
			}
			explainScale(cmd.OutOrStdout(), d)
			return nil
		})
}

func explainScale(w io.Writer, d *pb.DescribeFunctionResponse) {
	if len(d.GetDecisions()) == 0 {
		n := cmp.Or(d.GetFunction().GetInstances(), 1)
		if d.GetFunction().GetScale() == nil {
			fmt.Fprintf(w, "%s has a fixed number of instances: %d (`penstock fn scale` changes that)\n", d.GetFunction().GetName(), n)
		} else {
			why := "no runner has decided anything yet"
			if c := readyCondition(d.GetFunction()); c != nil && !c.GetOk() {
				why = c.GetMessage()
			}
			fmt.Fprintf(w, "%s: %s\n", d.GetFunction().GetName(), why)
		}
		return
	}
	slices.SortFunc(d.Decisions, func(a, b *pb.ScaleDecision) int { return strings.Compare(a.GetFunction(), b.GetFunction()) })
	for _, x := range d.GetDecisions() {
		fmt.Fprintf(w, "%s at %s: %d wanted, %d ready, %d starting (%s)\n", x.GetFunction()[strings.LastIndexByte(x.GetFunction(), '/')+1:],
			x.GetTime().AsTime().Local().Format(time.TimeOnly), x.GetWanted(), x.GetReady(), x.GetStarting(), x.GetReason())
		for _, s := range x.GetSteps() {
			fmt.Fprintf(w, "  %s\n", s)
		}
	}
}
