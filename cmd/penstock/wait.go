package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func newWaitCommand() *cobra.Command {
	var cf clientFlags
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "wait [REVISION]",
		Short: "Wait until every connected proxy serves a revision (default: the head), and functions run",
		Long: "Waits for the proxies, and then for the functions of the head that are starting. The exit code is 3 when\n" +
			"one cannot run, and when --timeout is over before all of it serves.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pb.WaitServingRequest{}
			if len(args) == 1 {
				var err error
				if req.Revision, err = revisionNumber(args[0]); err != nil {
					return err
				}
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := contextWithTimeout(ctx, timeout)
			defer cancel()
			stream, err := pb.NewConfigServiceClient(conn).WaitServing(ctx, req)
			if err != nil {
				return err
			}
			return cf.awaitServing(ctx, cmd.OutOrStdout(), stream, timeout)
		},
	}
	cf.addShared(c)
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "give up after")
	return c
}

// awaitServing prints what comes until all of it serves, cannot, or the time is over.
func (f *clientFlags) awaitServing(ctx context.Context, w io.Writer, stream grpc.ServerStreamingClient[pb.WaitServingResponse], timeout time.Duration) error {
	var last *pb.ServingReport
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			if last.GetServing() < last.GetTotal() || len(last.GetProblems()) > 0 {
				return errNotServing
			}
			return nil
		case err != nil && (ctx.Err() == context.DeadlineExceeded || status.Code(err) == codes.DeadlineExceeded):
			return fmt.Errorf("%w after %s", errNotServing, timeout)
		case err != nil:
			return err
		}
		last = m.GetReport()
		if f.output != "text" {
			if err := printMessage(w, f.output, last); err != nil {
				return err
			}
			continue
		}
		printServing(w, last)
	}
}

// revisionNumber reads the number of a revision.
func revisionNumber(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not the number of a revision; `penstock history` lists them", text)
	}
	return n, nil
}
