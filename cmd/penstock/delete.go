package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func newDeleteCommand() *cobra.Command {
	var cf clientFlags
	var wf writeFlags
	var paths []string
	c := &cobra.Command{
		Use:     "delete KIND NAME... | delete -f FILE",
		Short:   "Delete resources, as one revision",
		Example: "  penstock delete route hello\n  penstock delete routes/hello functions/hello\n  penstock delete -f hello.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			var names []string
			switch {
			case len(paths) > 0 && len(args) > 0, len(paths) == 0 && len(args) == 0:
				return errors.New("give KIND NAME or -f FILE")
			case len(paths) > 0:
				set, errs := file.Options{Project: cf.project}.Load(paths...)
				if len(errs) > 0 {
					return errs
				}
				for _, o := range set.Objects() {
					names = append(names, o.GetName())
				}
			default:
				var err error
				if names, err = fullNames(cf.project, args); err != nil {
					return err
				}
			}
			return cf.delete(cmd, &wf, names)
		},
	}
	cf.add(c)
	wf.add(c)
	c.Flags().StringSliceVarP(&paths, "file", "f", nil, "delete what these files hold")
	return c
}

// delete removes resources as one revision.
func (f *clientFlags) delete(cmd *cobra.Command, wf *writeFlags, names []string) error {
	ctx, conn, err := f.dial(cmd.Context())
	if err != nil {
		return err
	}
	defer conn.Close()
	return f.deleteOn(ctx, conn, cmd, wf, names)
}

func (f *clientFlags) deleteOn(ctx context.Context, conn *grpc.ClientConn, cmd *cobra.Command, wf *writeFlags, names []string) error {
	resp, err := pb.NewConfigServiceClient(conn).Apply(ctx, &pb.ApplyRequest{Deletes: names, Options: wf.options()})
	if err != nil {
		return err
	}
	return printWrite(cmd.OutOrStdout(), f.output, resp, resp.GetResult(), resp.GetChanges(), wf.dryRun)
}

// newDeleteOf is the delete verb of one kind.
func newDeleteOf(kind string) *cobra.Command {
	var cf clientFlags
	var wf writeFlags
	c := &cobra.Command{
		Use:     "delete NAME...",
		Aliases: []string{"rm"},
		Short:   "Delete " + kind + ", as one revision",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := namesOf(cf.project, kind, args)
			if err != nil {
				return err
			}
			return cf.delete(cmd, &wf, names)
		},
	}
	cf.add(c)
	wf.add(c)
	return c
}

func newFnDeleteCommand() *cobra.Command {
	var cf clientFlags
	var wf writeFlags
	var routes bool
	c := &cobra.Command{
		Use:     "delete NAME...",
		Aliases: []string{"rm"},
		Short:   "Delete functions with all their versions, as one revision",
		Long: "The instances end when their requests have. A function that a route sends requests to is not deleted,\n" +
			"but with --routes, which deletes the routes that refer to it as well.",
		Example: "  penstock fn delete hello\n  penstock fn delete hello --routes",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := namesOf(cf.project, gateway.KindFunctions, args)
			if err != nil {
				return err
			}
			ctx, client, err := cf.dialFn(cmd.Context())
			if err != nil {
				return err
			}
			defer client.conn.Close()
			if routes {
				seen := map[string]bool{}
				for _, n := range names[:len(names):len(names)] {
					d, err := client.ops.DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: n})
					if err != nil {
						return err
					}
					for _, r := range d.GetRoutes() {
						if !seen[r] {
							seen[r], names = true, append(names, r)
						}
					}
				}
			}
			err = cf.deleteOn(ctx, client.conn, cmd, &wf, names)
			if status.Code(err) == codes.FailedPrecondition {
				return fmt.Errorf("%s; --routes deletes the routes that refer to it as well", status.Convert(err).Message())
			}
			return err
		},
	}
	cf.add(c)
	wf.add(c)
	c.Flags().BoolVar(&routes, "routes", false, "delete the routes that refer to it, too")
	return c
}

// namesOf are the full names of objects of one kind.
func namesOf(project, kind string, args []string) ([]string, error) {
	var names []string
	for _, a := range args {
		name := gateway.Resolve(project, kind, trimKind(kind, a))
		if _, k, _, err := gateway.KindOf(name); err != nil {
			return nil, fmt.Errorf("%q: %w", a, err)
		} else if k != kind {
			return nil, fmt.Errorf("%s is not one of the %s", name, kind)
		}
		names = append(names, name)
	}
	return names, nil
}
