package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// historyPage is how many revisions one call asks for at most.
const historyPage = 1000

func newHistoryCommand() *cobra.Command {
	var cf clientFlags
	var limit int32
	var before int64
	c := &cobra.Command{
		Use:   "history [KIND NAME]",
		Short: "List revisions, newest first; of one object, what each changed of it",
		Long: "Lists the revisions that are kept, newest first: when, by whom and why. With a name it shows those that\n" +
			"changed that object, and what they changed. `penstock diff REVISION REVISION` compares two of them, and\n" +
			"`penstock rollback REVISION` goes back to one.",
		Example: "  penstock history\n  penstock history -n 50 --before 200\n  penstock history route support\n  penstock history functions/support -n 1 -o json",
		Args:    cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return fmt.Errorf("--limit %d is not a number of revisions: 1 or more", limit)
			}
			if before < 0 {
				return fmt.Errorf("--before %d is not the number of a revision", before)
			}
			if len(args) == 0 && cmd.Flags().Changed("project") {
				return errors.New("--project says where a NAME is looked up, and there is none: a revision is of all projects")
			}
			req := &pb.ListRevisionsRequest{}
			if before > 0 {
				req.PageToken = strconv.FormatInt(before, 10)
			}
			if len(args) > 0 {
				var err error
				if req.Object, err = fullName(cf.project, args); err != nil {
					return err
				}
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := revisions(ctx, pb.NewConfigServiceClient(conn), req, int(limit))
			if err != nil {
				return err
			}
			if req.GetObject() != "" && len(resp.GetRevisions()) == 0 {
				return noHistory(req)
			}
			if cf.output != "text" {
				return printMessage(cmd.OutOrStdout(), cf.output, resp)
			}
			printHistory(cmd.OutOrStdout(), req.GetObject(), resp)
			return nil
		},
	}
	cf.add(c)
	c.Flags().Int32VarP(&limit, "limit", "n", 20, "how many revisions to show")
	c.Flags().Int64Var(&before, "before", 0, "only revisions with a lower number than this")
	return c
}

// noHistory is the error for an object of which no revision tells anything.
func noHistory(req *pb.ListRevisionsRequest) error {
	if req.GetPageToken() != "" {
		return fmt.Errorf("no revision before %s that is kept changed %s", req.GetPageToken(), short(req.GetObject()))
	}
	return fmt.Errorf("%s does not exist, and did not in any revision that is kept", req.GetObject())
}

// revisions reads pages until limit revisions are there, or no more are kept. Of what is
// left next_page_token tells, as in one page.
func revisions(ctx context.Context, client pb.ConfigServiceClient, req *pb.ListRevisionsRequest, limit int) (*pb.ListRevisionsResponse, error) {
	out := &pb.ListRevisionsResponse{}
	for {
		req.PageSize = int32(min(limit-len(out.GetRevisions()), historyPage))
		page, err := client.ListRevisions(ctx, req)
		if err != nil {
			return nil, err
		}
		out.Revisions = append(out.Revisions, page.GetRevisions()...)
		out.NextPageToken = page.GetNextPageToken()
		if out.GetNextPageToken() == "" || len(out.GetRevisions()) >= limit {
			return out, nil
		}
		if out.GetNextPageToken() == req.GetPageToken() {
			return nil, errors.New("the control plane answers the same page of the history again and again")
		}
		req.PageToken = out.GetNextPageToken()
	}
}

func printHistory(w io.Writer, object string, resp *pb.ListRevisionsResponse) {
	when := func(r *pb.Revision) string { return r.GetCreateTime().AsTime().Local().Format(time.DateTime) }
	why := func(r *pb.Revision) string {
		if r.GetDamage() != "" {
			return "cannot be read: " + shorten(r.GetDamage())
		}
		return r.GetMessage()
	}
	older := "penstock history"
	if object == "" {
		table(w, "REVISION TIME AUTHOR CHANGES RESOURCES MESSAGE", func(row func(...any)) {
			for _, r := range resp.GetRevisions() {
				row(r.GetNumber(), when(r), r.GetAuthor(), r.GetChanges(), r.GetResources(), why(r))
			}
		})
	} else {
		older += " " + short(object)
		for i, r := range resp.GetRevisions() {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "revision %d, %s, by %s", r.GetNumber(), when(r), cmp.Or(r.GetAuthor(), "nobody named"))
			if text := why(r); text != "" {
				fmt.Fprintf(w, ": %s", text)
			}
			fmt.Fprintln(w)
			switch c := r.GetObjectChange(); {
			case c.GetType() != pb.ChangeType_CHANGE_TYPE_UNSPECIFIED:
				printChange(w, c)
			case r.GetDamage() == "":
				fmt.Fprintf(w, "  %s is in it; no older revision is kept\n", c.GetName())
			}
		}
	}
	if next := resp.GetNextPageToken(); next != "" {
		fmt.Fprintf(w, "\nolder ones: %s --before %s\n", older, next)
	}
}
