package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/suggest"
)

const defaultProject = "default"

// clientFlags are the flags of every verb that talks to the control plane.
type clientFlags struct {
	connect.Where
	project string
	output  string
	source  string // what calls, for the origin of objects; "" is "cli"
}

func (f *clientFlags) add(c *cobra.Command) {
	f.addShared(c)
	c.Flags().StringVar(&f.project, "project", defaultProject, "project of short names")
	c.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("project") {
			return nil
		}
		p, err := connect.Project(f.Where)
		f.project = cmp.Or(p, f.project)
		return err
	}
}

// addShared adds the flags of a verb that is about no project: a flag that is taken
// and not used would be believed.
func (f *clientFlags) addShared(c *cobra.Command) {
	f.addWhere(c)
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text, json or yaml")
}

// addWhere adds the flags that say which control plane is meant.
func (f *clientFlags) addWhere(c *cobra.Command) {
	c.Flags().StringVar(&f.Server, "server", "", "address of the configuration API, HOST:PORT, with TLS unless it is on this machine")
	c.Flags().StringVar(&f.Context, "context", "", "context to use, see \"penstock context\"")
	c.Flags().StringVar(&f.DataDir, "data-dir", "", "data folder of the control plane on this machine (default: the one that runs)")
	c.MarkFlagsMutuallyExclusive("server", "context")
	for _, name := range []string{"server", "context", "data-dir"} {
		groupVariable(c.Flags(), name, "where")
	}
}

// dial connects to the configuration API. The server knows the caller by the
// credential; what calls is a label for the history.
func (f *clientFlags) dial(ctx context.Context) (context.Context, *grpc.ClientConn, error) {
	if err := checkOutput(f.output); err != nil {
		return nil, nil, err
	}
	target, err := connect.Find(f.Where)
	if err != nil {
		return nil, nil, err
	}
	if target.DataDir != "" {
		f.DataDir = target.DataDir // whose processes and keys are meant, then
	}
	conn, err := target.Dial(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		return nil, nil, err
	}
	return metadata.AppendToOutgoingContext(ctx, "x-penstock-source", cmp.Or(f.source, "cli")), conn, nil
}

func checkOutput(output string) error {
	switch output {
	case "text", "json", "yaml":
		return nil
	}
	return fmt.Errorf("--output %q is not text, json or yaml", output)
}

// writeFlags are the flags of every verb that writes.
type writeFlags struct {
	wait    bool
	timeout time.Duration
	message string
	dryRun  bool
}

func (f *writeFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.wait, "wait", true, "return only when every connected proxy serves the revision")
	c.Flags().DurationVar(&f.timeout, "wait-timeout", 15*time.Second, "how long to wait for the proxies")
	c.Flags().StringVarP(&f.message, "message", "m", "", "why, for the history")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "check everything and store nothing")
}

func (f *writeFlags) options() *pb.WriteOptions {
	o := &pb.WriteOptions{ValidateOnly: f.dryRun, Message: f.message, WaitTimeout: durationpb.New(f.timeout)}
	if !f.wait {
		o.Wait = pb.WaitMode_WAIT_MODE_NONE
	}
	return o
}

// errNotServing is returned when a write was stored but is not served everywhere.
var errNotServing = errors.New("the revision is stored, but not all of it serves")

// printResult says what a write did and who serves it.
func printResult(w io.Writer, r *pb.WriteResult, changes []*pb.Change, dryRun bool) error {
	for _, c := range changes {
		printChange(w, c)
	}
	// What is in the way of the revision is said below, once.
	printWarnings(w, slices.DeleteFunc(slices.Clone(r.GetWarnings()), func(x *pb.Warning) bool {
		return slices.ContainsFunc(r.GetServing().GetProblems(), func(p *pb.ProxyProblem) bool {
			return p.GetObject() == x.GetObject() && p.GetDetail() == x.GetMessage()
		})
	}))
	switch {
	case dryRun:
		fmt.Fprintf(w, "valid: %d changes, nothing stored (head is revision %d)\n", len(changes), r.GetRevision())
		return nil
	case !r.GetChanged():
		fmt.Fprintf(w, "revision %d: no change\n", r.GetRevision())
	default:
		fmt.Fprintf(w, "revision %d\n", r.GetRevision())
	}
	if s := r.GetServing(); s != nil {
		printServing(w, s)
	}
	return resultError(r, changes)
}

// resultError is the exit code of a write: 3 when not all of it serves. Where no proxy is
// connected nothing does, unless all that was wanted is that something goes.
func resultError(r *pb.WriteResult, changes []*pb.Change) error {
	s := r.GetServing()
	stays := func(c *pb.Change) bool { return c.GetType() != pb.ChangeType_CHANGE_TYPE_DELETE }
	unserved := s != nil && s.GetTotal() == 0 && (len(changes) == 0 || slices.ContainsFunc(changes, stays))
	if unserved || len(s.GetProblems()) > 0 || s.GetServing() < s.GetTotal() {
		return errNotServing
	}
	return nil
}

// printWrite is printResult in the format that is asked for; m is the whole answer.
func printWrite(w io.Writer, output string, m proto.Message, r *pb.WriteResult, changes []*pb.Change, dryRun bool) error {
	if output == "text" {
		return printResult(w, r, changes, dryRun)
	}
	return cmp.Or(printMessage(w, output, m), resultError(r, changes))
}

// printWarnings lists what is valid but may not be meant.
func printWarnings(w io.Writer, warnings []*pb.Warning) {
	for _, x := range warnings {
		where := x.GetObject()
		if x.GetField() != "" {
			where += ": " + x.GetField()
		}
		fmt.Fprintf(w, "warning: %s: %s\n", where, x.GetMessage())
	}
}

func printChange(w io.Writer, c *pb.Change) {
	mark := map[pb.ChangeType]string{
		pb.ChangeType_CHANGE_TYPE_CREATE: "+", pb.ChangeType_CHANGE_TYPE_UPDATE: "~", pb.ChangeType_CHANGE_TYPE_DELETE: "-",
	}[c.GetType()]
	fmt.Fprintf(w, "%s %s\n", mark, c.GetName())
	for _, f := range c.GetFields() {
		before, after := f.GetBefore(), f.GetAfter()
		if before == "" {
			before = "(unset)"
		}
		if after == "" {
			after = "(unset)"
		}
		fmt.Fprintf(w, "    %s: %s -> %s\n", f.GetPath(), before, after)
	}
}

// printMessage prints a message as JSON or YAML, with the names and values of the
// format of files.
func printMessage(w io.Writer, output string, m proto.Message) error {
	encode := file.MessageYAML
	if output == "json" {
		encode = func(m proto.Message) ([]byte, error) { return file.MessageJSON(m, true) }
	}
	b, err := encode(m)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// fullName resolves "route x", "routes/x" or a full name.
func fullName(project string, args []string) (string, error) {
	if len(args) == 1 {
		if strings.HasPrefix(args[0], "projects/") {
			_, _, _, err := gateway.KindOf(args[0])
			return args[0], err
		}
		kind, name, ok := strings.Cut(args[0], "/")
		if !ok {
			return "", fmt.Errorf("%q does not say of which kind: write KIND/%s or KIND %s; kinds are %s", args[0], args[0], args[0], strings.Join(kinds, ", "))
		}
		args = []string{kind, name}
	}
	kind, err := collection(args[0])
	if err != nil {
		return "", err
	}
	return gateway.Resolve(project, kind, args[1]), nil
}

// fullNames resolves "route x y", "routes/x functions/y" or full names.
func fullNames(project string, args []string) ([]string, error) {
	if len(args) == 1 || strings.Contains(args[0], "/") {
		var names []string
		for _, a := range args {
			name, err := fullName(project, []string{a})
			if err != nil {
				return nil, err
			}
			names = append(names, name)
		}
		return names, nil
	}
	kind, err := collection(args[0])
	if err != nil {
		return nil, err
	}
	return namesOf(project, kind, args[1:])
}

// trimKind takes "routes/x", "route/x" and "x" for x.
func trimKind(kind, name string) string {
	prefix, rest, ok := strings.Cut(name, "/")
	if k, err := collection(prefix); ok && err == nil && k == kind {
		return rest
	}
	return name
}

var kinds = gateway.Collections()

// collection accepts "route", "routes", "Route".
func collection(kind string) (string, error) {
	k := strings.ToLower(kind)
	for _, c := range kinds {
		if l := strings.ToLower(c); k == l || k+"s" == l {
			return c, nil
		}
	}
	names := slices.Clone(kinds)
	for _, c := range kinds {
		names = append(names, strings.TrimSuffix(c, "s"))
	}
	hint := suggest.Name(kind, names)
	if !strings.HasPrefix(hint, "did you mean") {
		hint = "kinds are " + strings.Join(kinds, ", ")
	}
	return "", hinted(fmt.Sprintf("unknown kind %q", kind), hint)
}
