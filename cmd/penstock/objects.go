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
		Use:     "get KIND NAME",
		Short:   "Print one resource with its status",
		Example: "  penstock get route support\n  penstock get functions/support -o json",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := fullName(cf.project, args)
			if err != nil {
				return err
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			_, kind, _, err := gateway.KindOf(name)
			if err != nil {
				return err
			}
			all, err := objects(ctx, conn, kind)
			if err != nil {
				return err
			}
			for _, o := range all {
				if o.GetName() == name {
					return printMessage(cmd.OutOrStdout(), cf.output, o)
				}
			}
			return status.Errorf(codes.NotFound, "%s does not exist", name)
		},
	}
	cf.add(c)
	return c
}

func newListCommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use:   "list [KIND...]",
		Short: "List resources",
		RunE: func(cmd *cobra.Command, args []string) error {
			var want []string
			for _, a := range args {
				k, err := collection(a)
				if err != nil {
					return err
				}
				want = append(want, k)
			}
			if len(want) == 0 {
				want = slices.DeleteFunc(slices.Clone(kinds), func(k string) bool { return k == gateway.KindFunctionVersions })
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			all, err := objects(ctx, conn, want...)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if cf.output != "text" {
				for i, o := range all {
					if i > 0 && cf.output == "yaml" {
						fmt.Fprintln(w, "---")
					}
					if err := printMessage(w, cf.output, o); err != nil {
						return err
					}
				}
				return nil
			}
			listTable(w, all)
			return nil
		},
	}
	cf.add(c)
	return c
}

func listTable(w io.Writer, all []gateway.Object) {
	table(w, "NAME STATUS ORIGIN", func(row func(...any)) {
		for _, o := range all {
			row(strings.TrimPrefix(o.GetName(), "projects/default/"), summary(o), origin(o.GetMetadata().GetOrigin()))
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

func newDeleteCommand() *cobra.Command {
	var cf clientFlags
	var wf writeFlags
	var paths []string
	c := &cobra.Command{
		Use:   "delete KIND NAME | delete -f FILE",
		Short: "Delete resources, as one revision",
		Args:  cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pb.ApplyRequest{Options: wf.options()}
			switch {
			case len(paths) > 0 && len(args) > 0, len(paths) == 0 && len(args) == 0:
				return fmt.Errorf("give KIND NAME or -f FILE")
			case len(paths) > 0:
				set, errs := file.Options{Project: cf.project}.Load(paths...)
				if len(errs) > 0 {
					return errs
				}
				for _, o := range set.Objects() {
					req.Deletes = append(req.Deletes, o.GetName())
				}
			default:
				name, err := fullName(cf.project, args)
				if err != nil {
					return err
				}
				req.Deletes = []string{name}
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := pb.NewConfigServiceClient(conn).Apply(ctx, req)
			if err != nil {
				return err
			}
			return printResult(cmd.OutOrStdout(), resp.GetResult(), resp.GetChanges(), wf.dryRun)
		},
	}
	cf.add(c)
	wf.add(c)
	c.Flags().StringSliceVarP(&paths, "file", "f", nil, "delete what these files hold")
	return c
}

func newRouteCommand() *cobra.Command {
	c := &cobra.Command{Use: "route", Short: "Make routes without a file"}
	c.AddCommand(newRouteCreateCommand())
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
			return printResult(cmd.OutOrStdout(), resp.GetResult(), created, wf.dryRun)
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
