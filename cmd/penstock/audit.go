package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/audit"
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
		Long:    "The newest come last. When there are older ones, the last line says how to see them.",
		Example: "  penstock audit ls\n  penstock audit ls --verdict refused --limit 20\n  penstock audit ls --before 1200",
	},
		func(ctx context.Context, _ *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, _ []string) (proto.Message, error) {
			return c.ListAudit(ctx, r)
		},
		func(cmd *cobra.Command, m proto.Message) {
			records := m.(*pb.ListAuditResponse).GetRecords()
			table(cmd.OutOrStdout(), "NUMBER TIME WHO FROM ACTION VERDICT OBJECTS", func(row func(...any)) {
				for _, a := range records {
					var objects []string
					for _, o := range a.GetObjects() {
						mark := "~"
						if o.GetBefore() == "" {
							mark = "+"
						} else if o.GetAfter() == "" {
							mark = "-"
						}
						objects = append(objects, mark+audit.Plain(short(o.GetName())))
					}
					if len(objects) > 5 {
						objects = append(objects[:5], fmt.Sprintf("and %d more", len(objects)-5))
					}
					what := strings.Join(objects, " ")
					if what == "" {
						what = audit.Plain(firstLine(a.GetReason()))
					}
					row(a.GetNumber(), a.GetTime().AsTime().Local().Format(time.DateTime), audit.Plain(a.GetIdentity()), audit.Plain(a.GetFrom()),
						audit.Plain(strings.TrimPrefix(a.GetAction(), "/penstock.v1.")), audit.Plain(a.GetVerdict()), what) // earlier versions wrote what they got
				}
			})
			if len(records) > 0 && len(records) == int(r.Limit) && records[0].GetNumber() > 1 {
				fmt.Fprintf(cmd.OutOrStdout(), "older ones: penstock audit ls --before %d\n", records[0].GetNumber())
			}
		})
	c.Flags().Int32Var(&r.Limit, "limit", 50, "how many records, at most 1000")
	c.Flags().Int64Var(&r.Before, "before", 0, "only those with a smaller number than this")
	c.Flags().StringVar(&r.Identity, "who", "", "only those of an identity, such as token:ci")
	c.Flags().StringVar(&r.Verdict, "verdict", "", "only allowed, refused or failed ones")
	return c
}

func newAuditVerifyCommand() *cobra.Command {
	var cf clientFlags
	var hash string
	c := &cobra.Command{
		Use:   "verify [FILE|FOLDER]...",
		Short: "Check the chain of the audit log; the exit code is 0 when it is whole",
		Long: "Without arguments the control plane checks its log, against the store, too, which knows its newest record. Each\n" +
			"replica has a log of its own: this is about that of the one which answers.\n\n" +
			"With files it asks nobody: each FILE, or FOLDER of DATA-DIR/access/audit, is one chain, of one replica. A file may be\n" +
			"what `penstock audit ls -o json` prints, without --who or --verdict. What is missing before its first or after its last record\n" +
			"cannot be seen in a file. --hash, of a record that you noted elsewhere, must be in one of them.",
		Example: "  penstock audit verify\n  penstock audit verify audit.json --hash 4f6c…\n  penstock audit verify /backup/access/audit",
		RunE: func(cmd *cobra.Command, files []string) error {
			if len(files) > 0 {
				return verifyAuditFiles(cmd.OutOrStdout(), files, strings.ToLower(hash))
			}
			if hash != "" {
				return errors.New("--hash is for files")
			}
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
				fmt.Fprintf(cmd.OutOrStdout(), "records %d to %d of the replica that answered are as they were written\n", r.GetFirst(), r.GetLast())
			}
			if err == nil && !r.GetOk() {
				return errors.New("the audit log was changed: " + r.GetProblem())
			}
			return err
		},
	}
	c.Flags().StringVar(&hash, "hash", "", "hash of a record that must be in the files")
	cf.addShared(c)
	return c
}

// verifyAuditFiles checks logs without a control plane.
func verifyAuditFiles(w io.Writer, files []string, hash string) error {
	var errs []error
	found := hash == ""
	for _, f := range files {
		r, err := audit.VerifyFile(f)
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case r.Broken != 0:
			errs = append(errs, fmt.Errorf("%s: the audit log was changed: %s", f, r.Problem))
			continue
		}
		found = found || r.Has(hash)
		fmt.Fprintf(w, "%s: records %d to %d are as they were written; the newest has the hash %s\n", f, r.First, r.Last, r.Hash)
		if r.Before != "" {
			fmt.Fprintf(w, "  records before %d are not in it; the hash of the one before is %s\n", r.First, r.Before)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("no record has the hash %s: records were removed at the end or rewritten, or it is of another replica", hash)
	}
	if hash == "" {
		fmt.Fprintln(w, "whether records are missing after the newest cannot be seen in files: note its hash elsewhere, and give it as --hash later")
	}
	return nil
}
