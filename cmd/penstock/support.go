package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/support"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// supportCall bounds each question to the control plane: a bundle is most wanted when it hangs.
const supportCall = 10 * time.Second

// supportRun collects the parts of one bundle.
type supportRun struct {
	httpFlags
	bundle support.Bundle
	conn   *grpc.ClientConn
	down   error // why the control plane cannot be asked
}

func newSupportCommand() *cobra.Command {
	var r supportRun
	c := &cobra.Command{
		Use:   "support [FILE]",
		Short: "Write what helps to find a fault into one file, without secrets",
		Long: "Writes versions, status, proxies, configuration, history, warnings, the quarantine, the last log lines and\n" +
			"what this machine is into FILE (default penstock-support-TIME.tar.gz), which only its owner may read.\n" +
			"Values of secrets, environment variables and headers, tokens, and what functions print are left out. A part\n" +
			"that cannot be read is named with the reason; without a control plane the file holds what is on this machine.",
		Example: "  penstock support\n  penstock support fault.tar.gz",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "penstock-support-" + time.Now().Format("20060102-150405") + ".tar.gz"
			if len(args) == 1 {
				name = args[0]
			}
			r.collect(cmd.Context())
			if err := r.bundle.Write(name); err != nil {
				return err
			}
			describeSupport(cmd.OutOrStdout(), name, &r.bundle)
			return nil
		},
	}
	r.output = "text"
	r.add(c)
	return c
}

// describeSupport says what a bundle holds.
func describeSupport(w io.Writer, name string, b *support.Bundle) {
	missing := 0
	for _, p := range b.Parts {
		if p.Missing != "" {
			missing++
		}
	}
	fmt.Fprintf(w, "%s: %d parts, mode 0600\n", name, len(b.Parts)-missing)
	for _, p := range b.Parts {
		if p.Missing == "" {
			fmt.Fprintf(w, "  %-30s %s\n", p.Name, p.About)
		}
	}
	if missing > 0 {
		fmt.Fprintln(w, "left out:")
		for _, p := range b.Parts {
			if p.Missing != "" {
				fmt.Fprintf(w, "  %-30s %s\n", p.Name, shorten(p.Missing))
			}
		}
	}
	fmt.Fprintln(w, "Values of secrets, environment variables and headers, tokens, and what functions print are not in it.\n"+
		"Names, paths, host names, addresses and authors are.")
}

func (r *supportRun) collect(ctx context.Context) {
	ctx, conn, err := r.dial(ctx)
	if err == nil {
		defer conn.Close()
		r.conn = conn
	}
	r.down = err
	// The configuration comes first: what is left out of it is looked for in all else.
	r.configuration(ctx)
	r.state(ctx)
	r.machine()
}

// ask calls the control plane. After a call without an answer the others are not tried.
func (r *supportRun) ask(ctx context.Context, call func(context.Context) error) error {
	if r.down != nil {
		return r.down
	}
	ctx, cancel := context.WithTimeout(ctx, supportCall)
	defer cancel()
	err := call(ctx)
	if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
		r.down = errors.New(describeError(err))
	}
	if err != nil {
		return errors.New(describeError(err))
	}
	return nil
}

// configuration adds all objects, and what is valid in them but may not be meant.
func (r *supportRun) configuration(ctx context.Context) {
	var all []gateway.Object
	for _, kind := range kinds {
		var found []gateway.Object
		err := r.ask(ctx, func(ctx context.Context) (err error) {
			found, err = objects(ctx, r.conn, kind)
			return err
		})
		all = append(all, found...)
		var messages []proto.Message
		for _, o := range found {
			messages = append(messages, o)
		}
		r.bundle.AddMessages("configuration/"+kind+".yaml", fmt.Sprintf("%d %s", len(found), kind), messages, err)
	}
	r.bundle.Add("warnings.json", "what is valid and may not be meant", findingsOf(stateOf(all), all, true), r.down)
}

// state adds what the control plane says of itself, its proxies and functions.
func (r *supportRun) state(ctx context.Context) {
	r.bundle.Add("version.json", "versions of this command and of the Envoy that it brings", map[string]string{
		"penstock": version(), "envoy": toolbox.EnvoyVersion, "taken": time.Now().UTC().Format(time.RFC3339),
	}, nil)
	single := func(name, about string, call func(context.Context) (proto.Message, error)) {
		var m proto.Message
		err := r.ask(ctx, func(ctx context.Context) (err error) {
			m, err = call(ctx)
			return err
		})
		r.bundle.AddMessages(name, about, []proto.Message{m}, err)
	}
	single("status.yaml", "revision, who serves it, instances, problems", func(ctx context.Context) (proto.Message, error) {
		return pb.NewProxyServiceClient(r.conn).GetStatus(ctx, &pb.GetStatusRequest{})
	})
	single("proxies.yaml", "each proxy, and what it refused", func(ctx context.Context) (proto.Message, error) {
		return pb.NewProxyServiceClient(r.conn).ListProxies(ctx, &pb.ListProxiesRequest{})
	})
	single("history.yaml", "the last 100 revisions", func(ctx context.Context) (proto.Message, error) {
		return pb.NewConfigServiceClient(r.conn).ListRevisions(ctx, &pb.ListRevisionsRequest{PageSize: 100})
	})
	r.functions(ctx)
	quarantine := ""
	err := r.ask(ctx, func(ctx context.Context) error {
		resp, err := r.call(ctx, http.MethodGet, "/debug/quarantine")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
		quarantine = string(b)
		return err
	})
	r.bundle.AddText("quarantine.json", "what proxies refused, and what serves instead", quarantine, err)
}

// functions adds what runners say: isolation, times and numbers of instances.
func (r *supportRun) functions(ctx context.Context) {
	var messages []proto.Message
	err := r.ask(ctx, func(ctx context.Context) error {
		all, err := objects(ctx, r.conn, gateway.KindFunctions)
		for _, f := range all {
			d, derr := pb.NewFunctionOperationsServiceClient(r.conn).DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: f.GetName()})
			if derr != nil {
				return derr
			}
			d.Function, d.Versions = nil, nil // those are in the configuration
			messages = append(messages, d)
		}
		return err
	})
	r.bundle.AddMessages("functions.yaml", "instances, isolation, times and scaling of functions", messages, err)
}

// machine adds what is on this machine.
func (r *supportRun) machine() {
	r.bundle.Add("host.json", "kernel, memory, limits, names of PENSTOCK_ variables", support.ThisHost(), nil)
	dir := cmp.Or(r.DataDir, "./.penstock")
	state, err := readState(dir)
	if err == nil && state == nil {
		err = fmt.Errorf("no `penstock up` has run on %s", dir)
	}
	if err == nil {
		for i := range state.Processes {
			if p := &state.Processes[i]; p.Name == "runner" && p.Detail != "" {
				p.Detail = "(left out: it may quote a function)"
			}
		}
	}
	r.bundle.Add("up.json", "processes and addresses of `penstock up`", state, err)
	files, err := filesBelow(dir)
	r.bundle.AddText("files.txt", "names, modes and sizes of the data folder's files", files, err)
	log, ofFunctions, err := support.Log(filepath.Join(dir, "up.log"))
	r.bundle.AddText("up.log", fmt.Sprintf("the last log lines of `penstock up -d`; %d of functions were left out", ofFunctions), string(log), err)
}

// filesBelow lists a data folder without what functions and builds have made.
func filesBelow(dir string) (string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case path == dir && err != nil:
			return err
		case err != nil:
			out = append(out, fmt.Sprintf("%s: not readable", path))
			return nil
		case d.IsDir() && strings.Count(strings.TrimPrefix(path, dir), string(filepath.Separator)) > 3:
			return filepath.SkipDir
		}
		if info, err := d.Info(); err == nil {
			out = append(out, fmt.Sprintf("%s %12d %s %s", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), path))
		}
		return nil
	})
	if len(out) > 2000 {
		out = append(slices.Clip(out[:2000]), fmt.Sprintf("and %d more", len(out)-2000))
	}
	return strings.Join(out, "\n") + "\n", err
}
