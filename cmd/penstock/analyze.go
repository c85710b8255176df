package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// errFindings is returned by analyze when it finds something, so that CI can tell.
var errFindings = errors.New("there are findings")

func newAnalyzeCommand() *cobra.Command {
	var cf clientFlags
	var ff fileFlags
	c := &cobra.Command{
		Use:   "analyze [-f FILE]",
		Short: "Find what is valid and may not be meant",
		Long: "Looks at the configuration that is in force, or with -f at files alone, for routes that no\n" +
			"listener serves, rules that no request reaches, backends, secrets and consumers that nothing\n" +
			"uses, matches that another spelling walks around, timeouts below those of a function, and the like. validate --offline tells the same; writes\n" +
			"tell it of what they are given, but for what nothing reaches or uses. A note names hosts of more than 1,000 matches,\n" +
			"of which paths and policies are not compared. Exit code 0: no findings, 2: findings, 1: error.",
		Example: "  penstock analyze\n  penstock analyze -f examples/support-desk",
		RunE: func(cmd *cobra.Command, args []string) error {
			ff.paths = append(ff.paths, args...)
			all, err := analyzed(cmd, &cf, &ff)
			if err != nil {
				return err
			}
			state := stateOf(all)
			for _, host := range state.Crowded(objectNames(all)) {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: too many matches to compare their paths and policies: %s\n", host)
			}
			findings := gateway.AsWarnings(findingsOf(state, all, len(ff.paths) == 0))
			if cf.oneProject(cmd) {
				findings = slices.DeleteFunc(findings, func(w *pb.Warning) bool { return !cf.inProject(w.GetObject()) })
			}
			if cf.output != "text" {
				err = printMessage(cmd.OutOrStdout(), cf.output, &pb.WriteResult{Warnings: findings})
			} else {
				printWarnings(cmd.OutOrStdout(), findings)
				fmt.Fprintf(cmd.OutOrStdout(), "%s, %s\n", counted(len(all), "resource"), counted(len(findings), "finding"))
			}
			if err == nil && len(findings) > 0 {
				return errFindings
			}
			return err
		},
	}
	cf.add(c)
	ff.add(c)
	return c
}

// analyzed returns the objects of the files, or those of the control plane.
func analyzed(cmd *cobra.Command, cf *clientFlags, ff *fileFlags) ([]gateway.Object, error) {
	if len(ff.paths) > 0 {
		ff.offline = true
		_, set, err := ff.request(cmd.Context(), cf)
		if err != nil {
			return nil, err
		}
		for _, o := range set.Objects() {
			policies.Model().Normalize(o)
		}
		return set.Objects(), nil
	}
	ctx, conn, err := cf.dial(cmd.Context())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	want, err := collections(nil)
	if err != nil {
		return nil, err
	}
	return objects(ctx, conn, want...)
}

// findingsOf is what may not be meant in a configuration, which is the state of all, by object. Files that are not
// whole may leave their Gateways to others.
func findingsOf(state *gateway.Snapshot, all []gateway.Object, whole bool) []gateway.Problem {
	names := objectNames(all)
	found := []gateway.Problem{}
	for _, o := range all {
		found = append(found, policies.Model().Warnings(o)...)
	}
	found = append(found, slices.Concat(state.Neighbours(names), state.Shadowed(names), state.PolicyWarnings(names))...)
	if whole || len(state.List(gateway.KindGateways, "")) > 0 {
		found = append(found, state.UnattachedRoutes(names)...)
	}
	found = append(found, state.Unused(names)...)
	slices.SortStableFunc(found, func(a, b gateway.Problem) int { return strings.Compare(a.Object, b.Object) })
	return found
}

// stateOf is a configuration as a whole, without a control plane.
func stateOf(all []gateway.Object) *gateway.Snapshot {
	return policies.Model().Build(nil, 1, gateway.Changes{Updates: all})
}

func objectNames(all []gateway.Object) []string {
	names := make([]string, len(all))
	for i, o := range all {
		names[i] = o.GetName()
	}
	return names
}
