package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func newAuditCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "audit",
		Short: "See who changed what and who was refused, and check that nobody changed the log",
	}
	c.AddCommand(newAuditListCommand(), newAuditVerifyCommand())
	return c
}

func newAuditListCommand() *cobra.Command {
	r := &pb.ListAuditRequest{}
	c := accessCall(&cobra.Command{
		Use: "ls", Short: "List the newest records of the audit log", Args: cobra.NoArgs,
		Example: "  penstock audit ls\n  penstock audit ls --verdict refused --limit 20",
	},
		func(ctx context.Context, _ *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, _ []string) (proto.Message, error) {
			return c.ListAudit(ctx, r)
		},
		func(cmd *cobra.Command, m proto.Message) {
			table(cmd.OutOrStdout(), "NUMBER TIME WHO FROM ACTION VERDICT OBJECTS", func(row func(...any)) {
				for _, a := range m.(*pb.ListAuditResponse).GetRecords() {
					var objects []string
					for _, o := range a.GetObjects() {
						mark := "~"
						if o.GetBefore() == "" {
							mark = "+"
						} else if o.GetAfter() == "" {
							mark = "-"
						}
						objects = append(objects, mark+short(o.GetName()))
					}
					if len(objects) > 5 {
						objects = append(objects[:5], fmt.Sprintf("and %d more", len(objects)-5))
					}
					what := strings.Join(objects, " ")
					if what == "" {
						what = firstLine(a.GetReason())
					}
					row(a.GetNumber(), a.GetTime().AsTime().Local().Format(time.DateTime), a.GetIdentity(), a.GetFrom(),
						strings.TrimPrefix(a.GetAction(), "/penstock.v1."), a.GetVerdict(), what)
				}
			})
		})
	c.Flags().Int32Var(&r.Limit, "limit", 50, "how many records, at most 1000")
	c.Flags().StringVar(&r.Identity, "who", "", "only those of an identity, such as token:ci")
	c.Flags().StringVar(&r.Verdict, "verdict", "", "only allowed, refused or failed ones")
	return c
}

func newAuditVerifyCommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use: "verify", Short: "Check the chain of the audit log; the exit code is 0 when it is whole", Args: cobra.NoArgs, Example: "  penstock audit verify",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			r, err := pb.NewAccessServiceClient(conn).VerifyAudit(ctx, &pb.VerifyAuditRequest{})
			if err != nil {
				return err
			}
			if cf.output != "text" {
				err = printMessage(cmd.OutOrStdout(), cf.output, r)
			} else if r.GetOk() {
				fmt.Fprintf(cmd.OutOrStdout(), "records %d to %d are as they were written\n", r.GetFirst(), r.GetLast())
			}
			if err == nil && !r.GetOk() {
				return errors.New("the audit log was changed: " + r.GetProblem())
			}
			return err
		},
	}
	cf.addShared(c)
	return c
}
