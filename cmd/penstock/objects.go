package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// objects reads all resources of some kinds through the watch, which gives the
// whole state of one revision in one message.
func objects(ctx context.Context, conn *grpc.ClientConn, kinds ...string) ([]gateway.Object, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewConfigServiceClient(conn).Watch(ctx, &pb.WatchRequest{Kinds: kinds})
	if err != nil {
		return nil, err
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	var out []gateway.Object
	for _, r := range m.GetUpdates() {
		out = append(out, gateway.FromResource(r))
	}
	return out, nil
}

func newGetCommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use:     "get KIND NAME...",
		Aliases: []string{"describe"},
		Short:   "Print resources with their status, or, without a name, list those of a kind",
		Long: "Prints YAML with the status and what the control plane keeps of a resource. With -o yaml or -o json it is\n" +
			"what `penstock apply -f` reads.",
		Example: "  penstock get route support\n  penstock get functions/support -o json\n  penstock get routes",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kinds, err := collections(args[:1]); len(args) == 1 && err == nil {
				return cf.list(cmd, kinds)
			}
			names, err := fullNames(cf.project, args)
			if err != nil {
				return err
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			found, err := named(ctx, conn, names)
			if err != nil {
				return err
			}
			return printObjects(cmd.OutOrStdout(), cf.output, found, len(args) > 1 && len(names) > 1)
		},
	}
	cf.add(c)
	return c
}

// named reads resources by their names.
func named(ctx context.Context, conn *grpc.ClientConn, names []string) ([]gateway.Object, error) {
	var kinds []string
	for _, n := range names {
		_, kind, _, err := gateway.KindOf(n)
		if err != nil {
			return nil, err
		}
		kinds = append(kinds, kind)
	}
	all, err := objects(ctx, conn, kinds...)
	if err != nil {
		return nil, err
	}
	var out []gateway.Object
	for _, n := range names {
		i := slices.IndexFunc(all, func(o gateway.Object) bool { return o.GetName() == n })
		if i < 0 {
			return nil, status.Errorf(codes.NotFound, "%s does not exist", n)
		}
		out = append(out, all[i])
	}
	return out, nil
}

func newListCommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use:     "list [KIND...]",
		Aliases: []string{"ls"},
		Short:   "List resources: of all projects, or of that of --project",
		Long: "Shows names, what is wrong with each, and where it was written. With -o yaml or -o json it is what\n" +
			"`penstock apply -f` reads.",
		Example: "  penstock list\n  penstock list routes,functions\n  penstock list --project shop -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := collections(args)
			if err != nil {
				return err
			}
			return cf.list(cmd, want)
		},
	}
	cf.add(c)
	return c
}

// collections are the kinds that arguments name; all that people write when there are
// none.
func collections(args []string) ([]string, error) {
	var want []string
	for _, a := range args {
		for kind := range strings.SplitSeq(a, ",") {
			k, err := collection(kind)
			if err != nil {
				return nil, err
			}
			want = append(want, k)
		}
	}
	if len(args) == 0 {
		want = slices.Clone(gateway.Writable())
	}
	return want, nil
}

// list prints the resources of some kinds, of one project when one is meant.
func (f *clientFlags) list(cmd *cobra.Command, kinds []string) error {
	ctx, conn, err := f.dial(cmd.Context())
	if err != nil {
		return err
	}
	defer conn.Close()
	all, err := objects(ctx, conn, kinds...)
	if err != nil {
		return err
	}
	if f.oneProject(cmd) {
		all = slices.DeleteFunc(all, func(o gateway.Object) bool { return !f.inProject(o.GetName()) })
	}
	if f.output != "text" {
		return printObjects(cmd.OutOrStdout(), f.output, all, true)
	}
	listTable(cmd.OutOrStdout(), all)
	return nil
}

// oneProject reports whether a project is named, by a flag or by the context.
func (f *clientFlags) oneProject(cmd *cobra.Command) bool {
	return cmd.Flags().Changed("project") || f.project != defaultProject
}

func (f *clientFlags) inProject(name string) bool {
	return strings.HasPrefix(name, "projects/"+f.project+"/")
}

// printObjects prints what apply reads: YAML documents, or JSON, a list if need be; and
// for a person YAML with what the control plane keeps.
func printObjects(w io.Writer, output string, all []gateway.Object, list bool) error {
	switch output {
	case "json":
		b, err := file.EncodeJSON(all, list)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	for i, o := range all {
		if i > 0 {
			fmt.Fprintln(w, "---")
		}
		var options []file.EncodeOption
		if output == "text" {
			options = append(options, file.WithStatus())
		}
		b, err := file.Encode(o, options...)
		if err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func listTable(w io.Writer, all []gateway.Object) {
	// What is wrong comes last: it is as long as it has to be.
	table(w, "NAME ORIGIN STATUS", func(row func(...any)) {
		for _, o := range all {
			row(short(o.GetName()), origin(o.GetMetadata().GetOrigin()), oneLine(o))
		}
	})
}

// summary is the first condition that does not hold, else the last.
func summary(o gateway.Object) string {
	s, ok := o.(interface{ GetStatus() *pb.Status })
	if !ok {
		return ""
	}
	text := ""
	for _, c := range s.GetStatus().GetConditions() {
		text = c.GetMessage()
		if !c.GetOk() {
			break
		}
	}
	return text
}

// oneLine is the summary of an object in a line, and where the rest is told.
func oneLine(o gateway.Object) string {
	whole := summary(o)
	line := shorten(whole)
	return line + more(o.GetName(), whole, line)
}

func origin(o *pb.Origin) string {
	switch {
	case o.GetFile() != "" && o.GetObject() != "":
		return fmt.Sprintf("%s:%d (%s)", o.GetFile(), o.GetLine(), o.GetObject())
	case o.GetFile() != "":
		return fmt.Sprintf("%s:%d", o.GetFile(), o.GetLine())
	case o.GetCaller() != "":
		return o.GetSource() + " by " + o.GetCaller()
	}
	return o.GetSource()
}

func newRouteCommand() *cobra.Command {
	c := &cobra.Command{Use: "route", Aliases: []string{"routes"}, Short: "Make and delete routes without a file"}
	c.AddCommand(newRouteCreateCommand(), newDeleteOf("routes"))
	return c
}

func newRouteCreateCommand() *cobra.Command {
	var cf clientFlags
	var wf writeFlags
	var path, backend string
	var hosts, methods, gateways []string
	var exact bool
	c := &cobra.Command{
		Use:     "create NAME --path PREFIX --backend BACKEND",
		Short:   "Create a route through RouteService and wait until it is served",
		Example: "  penstock route create hello --path /hello --backend functions/support",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			match := &pb.RouteMatch{Methods: methods, Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: path}}}
			if exact {
				match.Path.Match = &pb.PathMatch_Exact{Exact: path}
			}
			route := &pb.Route{
				Name: gateway.Resolve(cf.project, "routes", args[0]), Hostnames: hosts, Gateways: gateways,
				Rules: []*pb.RouteRule{{
					Matches: []*pb.RouteMatch{match},
					Action:  &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: backend}}}},
				}},
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := pb.NewRouteServiceClient(conn).CreateRoute(ctx, &pb.CreateRouteRequest{
				Parent: "projects/" + cf.project, Route: route, Options: wf.options(),
			})
			if err != nil {
				return err
			}
			created := []*pb.Change{{Name: resp.GetRoute().GetName(), Type: pb.ChangeType_CHANGE_TYPE_CREATE}}
			return printWrite(cmd.OutOrStdout(), cf.output, resp, resp.GetResult(), created, wf.dryRun)
		},
	}
	cf.add(c)
	wf.add(c)
	c.Flags().StringVar(&path, "path", "/", "path prefix")
	c.Flags().BoolVar(&exact, "exact", false, "match the path exactly")
	c.Flags().StringVar(&backend, "backend", "", "backend or functions/NAME")
	c.Flags().StringSliceVar(&hosts, "host", nil, "host (repeatable; default any)")
	c.Flags().StringSliceVar(&methods, "method", nil, "method (repeatable; default any)")
	c.Flags().StringSliceVar(&gateways, "gateway", nil, "gateway (repeatable; default all)")
	_ = c.MarkFlagRequired("backend")
	return c
}
