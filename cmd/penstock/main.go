// Command penstock is the whole product in one binary: the gateway on one machine
// (up, down), its parts as they run in production (control, limiter, runner,
// relay), and the client (apply, get, explain, trace and the other verbs).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/internal/console"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		// Differences, findings and "no" are answers, not errors; only the exit code tells.
		if !errors.Is(err, errDiffers) && !errors.Is(err, errFindings) && !errors.Is(err, errNotAllowed) {
			fmt.Fprintln(console.Output(os.Stderr), "error: "+describeError(err))
		}
		os.Exit(exitCode(err))
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "penstock",
		Short: "An API gateway for functions and microservices on Envoy",
		Long: "Penstock programs Envoy to route, authenticate, rate-limit and balance requests\n" +
			"to functions and services. `penstock up` runs everything on one machine.\n\n" + exitCodes,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(console.Output(os.Stdout))
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "config", Title: "Configure:"},
		&cobra.Group{ID: "look", Title: "Look:"},
	)
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("run", newUpCommand(), newDownCommand(), newControlCommand(), newLimiterCommand(), newRunnerCommand(), newRelayCommand(),
		newProxyCommand())
	group("config", newApplyCommand(), newDiffCommand(), newValidateCommand(), newAnalyzeCommand(), newGetCommand(), newListCommand(),
		newDeleteCommand(), newRouteCommand(), newFnCommand(), newHistoryCommand(), newRollbackCommand(), newBackupCommand(), newRestoreCommand(), newStoreCommand(), newTokenCommand(),
		newLoginCommand(), newContextCommand(), newAccessCommand())
	group("look", newStatusCommand(), newProxiesCommand(), newExplainCommand(), newTraceCommand(), newWaitCommand(), newDebugCommand(), newQuarantineCommand(),
		newVersionCommand(), newAuditCommand(), newSupportCommand())
	withEnvironment(root)
	refuseUnknown(root)
	completeNames(root)
	return root
}
