package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// errDiffers is returned by diff when there are differences, so that CI can tell.
var errDiffers = errors.New("there are differences")

func newApplyCommand() *cobra.Command {
	var cf clientFlags
	var wf writeFlags
	var ff fileFlags
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or replace resources, as one revision, and wait until it is served",
		Long: "Reads YAML or JSON files, folders or - (standard input): Penstock resources and Istio\n" +
			"Gateway, VirtualService and DestinationRule. All of them make one revision, or none.",
		Example: "  penstock apply -f route.yaml\n  penstock apply route.yaml\n  penstock apply -f config/ --prune shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			ff.paths = append(ff.paths, args...)
			req, set, err := ff.request(cmd.Context(), &cf)
			if err != nil {
				return err
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			req.Options = wf.options()
			resp, err := pb.NewConfigServiceClient(conn).Apply(ctx, req)
			if err != nil {
				return located(set, err)
			}
			return printWrite(cmd.OutOrStdout(), cf.output, resp, resp.GetResult(), resp.GetChanges(), wf.dryRun)
		},
	}
	cf.add(c)
	wf.add(c)
	ff.add(c)
	ff.addPrune(c)
	return c
}

// fileFlags say which files are read.
type fileFlags struct {
	paths      []string
	prune      string
	allowEmpty bool
	// offline: nothing is looked up at a control plane.
	offline bool
}

func (f *fileFlags) add(c *cobra.Command) {
	c.Flags().StringSliceVarP(&f.paths, "file", "f", nil, "file, folder or - (repeatable)")
}

func (f *fileFlags) addPrune(c *cobra.Command) {
	c.Flags().StringVar(&f.prune, "prune", "", "name of a set: delete what was applied with it before and is not in the files now")
	c.Flags().BoolVar(&f.allowEmpty, "allow-empty", false, "with --prune: files without a resource delete the whole set")
}

// request reads files into a request. The set knows where each field was written. A Backend
// that a DestinationRule changes and that is not in the files is looked up at the control
// plane; not with --prune, for it would become one of the set.
func (f *fileFlags) request(ctx context.Context, cf *clientFlags) (*pb.ApplyRequest, *file.Set, error) {
	if len(f.paths) == 0 {
		return nil, nil, errors.New("give -f FILE: a file, a folder or - (standard input)")
	}
	var failed error
	o := file.Options{Project: cf.project}
	if !f.offline && f.prune == "" {
		o.Stored = func(names []string) (out []*pb.Backend) {
			out, failed = cf.backends(ctx, names)
			return out
		}
	}
	set, errs := o.Load(f.paths...)
	if failed != nil {
		return nil, nil, failed
	}
	if len(errs) > 0 {
		return nil, nil, errs
	}
	req := &pb.ApplyRequest{PruneSet: f.prune, AllowEmpty: f.allowEmpty}
	for _, o := range set.Objects() {
		req.Resources = append(req.Resources, gateway.ToResource(o))
	}
	switch where := strings.Join(f.paths, ", "); {
	case len(req.GetResources()) > 0:
	case f.prune == "":
		return nil, nil, fmt.Errorf("there is no resource in %s", where)
	case !f.allowEmpty:
		return nil, nil, fmt.Errorf("there is no resource in %s, so --prune would delete the whole set %q; --allow-empty says that this is meant", where, f.prune)
	}
	return req, set, nil
}

// backends gets those of the Backends that are stored.
func (f *clientFlags) backends(ctx context.Context, names []string) ([]*pb.Backend, error) {
	ctx, conn, err := f.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var out []*pb.Backend
	for _, name := range names {
		switch b, err := pb.NewBackendServiceClient(conn).GetBackend(ctx, &pb.GetBackendRequest{Name: name}); {
		case err == nil:
			out = append(out, b.GetBackend())
		case status.Code(err) != codes.NotFound:
			return nil, err
		}
	}
	return out, nil
}

// located shows what a server refused at the place in the files where it was
// written.
func located(set *file.Set, err error) error {
	var problems []gateway.Problem
	for _, d := range status.Convert(err).Details() {
		if p, ok := d.(*pb.ObjectProblem); ok {
			problems = append(problems, gateway.Problem{Object: p.GetObject(), Field: p.GetField(), Message: p.GetMessage()})
		}
	}
	if len(problems) == 0 || set == nil {
		return err
	}
	return set.Locate(problems)
}

func newDiffCommand() *cobra.Command {
	var cf clientFlags
	var ff fileFlags
	c := &cobra.Command{
		Use:   "diff -f FILE | diff FROM [TO]",
		Short: "Show what an apply would change, or the difference of two revisions",
		Long: "Shows the fields that change and the Envoy resources that would be sent, and marks those\n" +
			"whose change drains connections. Exit code 0: no difference, 2: differences, 1: error.",
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pb.DiffRequest{}
			var set *file.Set
			switch {
			case len(ff.paths) > 0 && len(args) > 0:
				return errors.New("give files or revisions, not both")
			case len(ff.paths) > 0:
				var err error
				if req.Apply, set, err = ff.request(cmd.Context(), &cf); err != nil {
					return err
				}
			case len(args) > 0:
				var err error
				if req.FromRevision, err = revisionNumber(args[0]); err != nil {
					return fmt.Errorf("%w; files are given with -f", err)
				}
				if len(args) > 1 {
					if req.ToRevision, err = revisionNumber(args[1]); err != nil {
						return err
					}
				}
			default:
				return errors.New("give -f FILE or one or two revisions")
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := pb.NewConfigServiceClient(conn).Diff(ctx, req)
			if err != nil {
				return located(set, err)
			}
			if cf.output != "text" {
				err = printMessage(cmd.OutOrStdout(), cf.output, resp)
			} else {
				printDiff(cmd.OutOrStdout(), resp)
			}
			if err == nil && len(resp.GetChanges()) > 0 {
				return errDiffers
			}
			return err
		},
	}
	cf.add(c)
	ff.add(c)
	ff.addPrune(c)
	return c
}

func printDiff(w io.Writer, d *pb.DiffResponse) {
	if len(d.GetChanges()) == 0 {
		fmt.Fprintln(w, "no difference")
		return
	}
	for _, c := range d.GetChanges() {
		printChange(w, c)
	}
	printWarnings(w, d.GetWarnings())
	fmt.Fprintf(w, "\nEnvoy resources: %d\n", len(d.GetProxyChanges()))
	for _, p := range d.GetProxyChanges() {
		mark := map[pb.ChangeType]string{
			pb.ChangeType_CHANGE_TYPE_CREATE: "+", pb.ChangeType_CHANGE_TYPE_UPDATE: "~", pb.ChangeType_CHANGE_TYPE_DELETE: "-",
		}[p.GetChange()]
		note := ""
		if p.GetDrains() {
			note = "  (drains its connections)"
		}
		if p.GetOnDemand() {
			note = "  (on demand)"
		}
		fmt.Fprintf(w, "%s %s %s%s\n", mark, p.GetType(), p.GetResource(), note)
	}
}

func newValidateCommand() *cobra.Command {
	var cf clientFlags
	var ff fileFlags
	var offline bool
	c := &cobra.Command{
		Use:   "validate -f FILE",
		Short: "Check files and store nothing",
		Long: "Checks against the running control plane, references to what is there included. With\n" +
			"--offline the files must hold everything that they refer to.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ff.paths = append(ff.paths, args...)
			ff.offline = offline
			req, set, err := ff.request(cmd.Context(), &cf)
			if err != nil {
				return err
			}
			if offline {
				return validateOffline(cmd.OutOrStdout(), set)
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			req.Options = &pb.WriteOptions{ValidateOnly: true}
			resp, err := pb.NewConfigServiceClient(conn).Apply(ctx, req)
			if err != nil {
				return located(set, err)
			}
			printWarnings(cmd.OutOrStdout(), resp.GetResult().GetWarnings())
			fmt.Fprintf(cmd.OutOrStdout(), "valid: %s, %d would change\n", counted(len(req.GetResources()), "resource"), len(resp.GetChanges()))
			return nil
		},
	}
	cf.add(c)
	ff.add(c)
	c.Flags().BoolVar(&offline, "offline", false, "without a control plane")
	return c
}

// devIssuerStandIn is in the place of the key set of the development issuer, which no file
// holds. Nothing is verified with it.
var devIssuerStandIn = &pb.Secret{Name: devIssuerSecret, Value: &pb.Secret_Jwks{Jwks: `{"keys": []}`}}

func validateOffline(w io.Writer, set *file.Set) error {
	var problems []gateway.Problem
	objects := set.Objects()
	for _, o := range objects {
		policies.Model().Normalize(o)
		problems = append(problems, policies.Model().Validate(o)...)
	}
	state := policies.Model().Build(nil, 1, gateway.Changes{Updates: objects})
	var names []string
	for _, o := range objects {
		names = append(names, o.GetName())
	}
	if len(state.Referrers(devIssuerSecret)) > 0 && state.Get(devIssuerSecret) == nil {
		// It is in no file: the development issuer makes it.
		state = policies.Model().Build(state, 2, gateway.Changes{Updates: []gateway.Object{devIssuerStandIn}})
		fmt.Fprintln(w, "note: secrets/dev-issuer is there with `penstock up` and `penstock control --dev-issuer` only")
	}
	problems = append(problems, state.Check()...)
	if problems = append(problems, state.UnservedByDefault(names)...); len(problems) > 0 {
		return set.Locate(problems)
	}
	printWarnings(w, gateway.AsWarnings(findingsOf(stateOf(objects), objects, false)))
	fmt.Fprintf(w, "valid: %s\n", counted(len(objects), "resource"))
	return nil
}
