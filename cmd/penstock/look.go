package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func newProxiesCommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use:   "proxies",
		Short: "Show each proxy, its identity, its revision, what it refused and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := cmd.OutOrStdout()
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				printFromDisk(w, cf)
				return err
			}
			defer conn.Close()
			resp, err := pb.NewProxyServiceClient(conn).ListProxies(ctx, &pb.ListProxiesRequest{})
			if err != nil {
				printFromDisk(w, cf)
				return err
			}
			if cf.output != "text" {
				return printMessage(w, cf.output, resp)
			}
			table(w, "NAME IDENTITY ENVOY REVISION STATE LAST-ACK SENT", func(row func(...any)) {
				for _, p := range resp.GetProxies() {
					row(p.GetName(), p.GetIdentity(), p.GetVersion(), p.GetRevision(), p.GetState(), ago(p.GetLastAckTime()), p.GetResourcesSent())
				}
			})
			for _, p := range resp.GetProxies() {
				for _, q := range p.GetProblems() {
					fmt.Fprintf(w, "\n%s: %s %s %s (from %s)\n  %s\n", p.GetName(), q.GetState(), q.GetType(), q.GetResource(), q.GetObject(), q.GetDetail())
				}
			}
			return nil
		},
	}
	cf.addShared(c)
	return c
}

func ago(t *timestamppb.Timestamp) string {
	if t == nil {
		return "never"
	}
	return time.Since(t.AsTime()).Round(time.Second).String() + " ago"
}

func newStatusCommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the revision, who serves it, functions, problems, processes and addresses",
		Long: "Shows all that runs, and ends with exit code 3 when not all of it serves as it is stored: a proxy that\n" +
			"lags or refuses a part, a gateway without a proxy, an object with a problem, a function that cannot run or\n" +
			"whose runner is gone, a process of this machine's `penstock up` that does not run.",
		Example: "  penstock status\n  penstock status --data-dir ./.penstock\n  penstock status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := cmd.OutOrStdout()
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				printFromDisk(w, cf)
				return err
			}
			defer conn.Close()
			resp, err := pb.NewProxyServiceClient(conn).GetStatus(ctx, &pb.GetStatusRequest{})
			if err != nil {
				printProcesses(w, cf.DataDir)
				return err
			}
			if cf.oneProject(cmd) {
				if err := cf.statusOfProject(ctx, conn, resp); err != nil {
					return err
				}
			}
			if cf.output != "text" {
				return cmp.Or(printMessage(w, cf.output, resp), statusError(resp, cf.DataDir))
			}
			printStatus(w, resp)
			printProcesses(w, cf.DataDir)
			return statusError(resp, cf.DataDir)
		},
	}
	cf.add(c)
	return c
}

// statusOfProject leaves in a status what is of the project: objects, functions and
// their problems. What all projects share stays.
func (f *clientFlags) statusOfProject(ctx context.Context, conn *grpc.ClientConn, s *pb.GetStatusResponse) error {
	all, err := objects(ctx, conn, kinds...)
	if err != nil {
		return err
	}
	s.Resources = map[string]int32{}
	for _, o := range all {
		if _, kind, _, err := gateway.KindOf(o.GetName()); err == nil && f.inProject(o.GetName()) {
			s.Resources[kind]++
		}
	}
	s.Instances = slices.DeleteFunc(s.Instances, func(i *pb.Instance) bool { return !f.inProject(i.GetFunction()) })
	s.Problems = slices.DeleteFunc(s.Problems, func(p *pb.ObjectProblem) bool { return !f.inProject(p.GetObject()) })
	return nil
}

// statusError is the exit code of what status shows: 3 when not all of the head is
// served, or a process of the `up` of the data folder does not run.
func statusError(s *pb.GetStatusResponse, dataDir string) error {
	if r := s.GetServing(); len(s.GetProblems()) > 0 || len(r.GetProblems()) > 0 || r.GetServing() < r.GetTotal() || !processesServe(dataDir) {
		return errNotServing
	}
	return nil
}

// instanceAddress is where requests reach an instance: an address and a port, or the
// path of a Unix socket.
func instanceAddress(i *pb.Instance) string {
	if i.GetPort() == 0 {
		return i.GetAddress()
	}
	return net.JoinHostPort(i.GetAddress(), strconv.FormatUint(uint64(i.GetPort()), 10))
}

// inWords is the name of a kind as it is spoken: "function version" of functionVersion.
func inWords(kind string) string {
	return regexp.MustCompile(`[A-Z]`).ReplaceAllStringFunc(kind, func(c string) string { return " " + strings.ToLower(c) })
}

func printStatus(w io.Writer, s *pb.GetStatusResponse) {
	fmt.Fprintf(w, "revision %d, ", s.GetServing().GetRevision())
	printServing(w, s.GetServing())
	var counts []string
	for _, k := range kinds {
		if n := s.GetResources()[k]; n > 0 {
			counts = append(counts, counted(int(n), inWords(strings.TrimSuffix(k, "s"))))
		}
	}
	if len(counts) > 0 {
		fmt.Fprintf(w, "resources: %s\n", strings.Join(counts, ", "))
	}
	switch n := max(int(s.GetRunnerCount()), len(s.GetRunners())); {
	case n == 0:
		fmt.Fprintln(w, "runners: none is connected")
	case len(s.GetRunners()) == 0:
		fmt.Fprintf(w, "runners: %d connected (names are for credentials that see all projects)\n", n)
	default:
		fmt.Fprintf(w, "runners: %s\n", strings.Join(s.GetRunners(), ", "))
	}
	for _, l := range s.GetLostRunners() {
		fmt.Fprintf(w, "runner %s: not heard of since %s; its instances may serve on, their state is not known\n",
			l.GetName(), l.GetLastHeardTime().AsTime().Local().Format(time.DateTime))
	}
	if len(s.GetInstances()) > 0 {
		fmt.Fprintln(w)
		table(w, "FUNCTION INSTANCE STATE ADDRESS PID RESTARTS MESSAGE", func(row func(...any)) {
			for _, i := range s.GetInstances() {
				addr := instanceAddress(i)
				row(strings.TrimPrefix(i.GetFunction(), "projects/default/"), i.GetId(),
					strings.ToLower(strings.TrimPrefix(i.GetState().String(), "INSTANCE_STATE_")), addr, i.GetPid(), i.GetRestarts(), shorten(i.GetMessage()))
			}
		})
	}
	if len(s.GetProblems()) > 0 {
		fmt.Fprintln(w, "\nproblems:")
		for _, p := range s.GetProblems() {
			fmt.Fprintf(w, "  %s\n", objectProblem(p))
		}
	}
}

func newRollbackCommand() *cobra.Command {
	var cf clientFlags
	var wf writeFlags
	c := &cobra.Command{
		Use:   "rollback REVISION",
		Short: "Make a new revision with the content of an old one",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			revision, err := revisionNumber(args[0])
			if err != nil {
				return err
			}
			req := &pb.RollbackRequest{Revision: revision, Options: wf.options()}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := pb.NewConfigServiceClient(conn).Rollback(ctx, req)
			if err != nil {
				return err
			}
			return printWrite(cmd.OutOrStdout(), cf.output, resp, resp.GetResult(), resp.GetChanges(), wf.dryRun)
		},
	}
	cf.addShared(c)
	wf.add(c)
	return c
}

func short(name string) string { return strings.TrimPrefix(name, "projects/default/") }

func newDebugCommand() *cobra.Command {
	c := &cobra.Command{Use: "debug", Short: "Look inside the control plane"}
	var hf httpFlags
	var stage, view string
	stages := []string{"model", "xds", "proxies", "instances"}
	dump := &cobra.Command{
		Use:   "dump --stage STAGE",
		Short: "Print what one stage of a change holds: " + strings.Join(stages, ", "),
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(stages, stage) {
				return fmt.Errorf("--stage %q is none of %s", stage, strings.Join(stages, ", "))
			}
			resp, err := hf.call(cmd.Context(), http.MethodGet, "/debug/dump?"+url.Values{"stage": {stage}, "view": {view}}.Encode())
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.Copy(cmd.OutOrStdout(), resp.Body)
			return err
		},
	}
	hf.add(dump)
	dump.Flags().StringVar(&stage, "stage", "model", strings.Join(stages, ", "))
	dump.Flags().StringVar(&view, "view", "default/-", "for xds: project/gateway")
	c.AddCommand(dump)
	return c
}
