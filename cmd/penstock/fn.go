package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func newFnCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "fn", Aliases: []string{"function", "functions"},
		Short: "Make, deploy, call and look at functions",
		Long: "Functions are handlers as clouds run them (AWS Lambda, Google's Functions Framework, Azure custom\n" +
			"handlers) or servers that read PORT, unmodified. `fn init` writes one to begin with.",
	}
	c.AddCommand(newFnInitCommand(), newFnDeployCommand(), newFnDevCommand(), newFnInvokeCommand(), newFnLogsCommand(),
		newFnListCommand(), newFnDescribeCommand(), newFnExplainScaleCommand(), newFnScaleCommand(), newFnRollbackCommand(),
		newFnPromoteCommand(), newFnReplayCommand(), newFnDeleteCommand())
	return c
}

// fnClient is what the verbs of fn call.
type fnClient struct {
	conn *grpc.ClientConn
	pb.FunctionServiceClient
	ops pb.FunctionOperationsServiceClient
}

// dialFn connects; close the connection.
func (f *clientFlags) dialFn(ctx context.Context) (context.Context, *fnClient, error) {
	ctx, conn, err := f.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	return ctx, &fnClient{conn: conn, FunctionServiceClient: pb.NewFunctionServiceClient(conn), ops: pb.NewFunctionOperationsServiceClient(conn)}, nil
}

// functionName is the full name of a function that was named in short.
func (f *clientFlags) functionName(arg string) (string, error) {
	name := gateway.Resolve(f.project, gateway.KindFunctions, trimKind(gateway.KindFunctions, arg))
	_, kind, _, err := gateway.KindOf(name)
	if err == nil && kind != gateway.KindFunctions {
		err = fmt.Errorf("%s is not a function", name)
	}
	return name, err
}

// fnVerb is a verb on one function, with the connection made.
func fnVerb(use, short string, flags func(c *cobra.Command), run func(cmd *cobra.Command, ctx context.Context, client *fnClient, name string) error) *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := cf.functionName(args[0])
			if err != nil {
				return err
			}
			ctx, client, err := cf.dialFn(cmd.Context())
			if err != nil {
				return err
			}
			defer client.conn.Close()
			return run(cmd, ctx, client, name)
		},
	}
	cf.add(c)
	if flags != nil {
		flags(c)
	}
	return c
}

// change reads a function, changes it and writes it back; the write fails when
// somebody else was faster.
func (c *fnClient) change(ctx context.Context, cmd *cobra.Command, name string, o *pb.WriteOptions, change func(f *pb.Function, d *pb.DescribeFunctionResponse) error) error {
	d, err := c.ops.DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: name})
	if err != nil {
		return err
	}
	f := d.GetFunction()
	if err := change(f, d); err != nil {
		return err
	}
	f.Status = nil
	resp, err := c.UpdateFunction(ctx, &pb.UpdateFunctionRequest{Function: f, Options: o})
	if err != nil {
		return err
	}
	output, err := cmd.Flags().GetString("output")
	if err != nil {
		return err
	}
	return printWrite(cmd.OutOrStdout(), output, resp, resp.GetResult(), nil, o.GetValidateOnly())
}
