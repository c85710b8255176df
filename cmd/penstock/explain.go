package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func newExplainCommand() *cobra.Command {
	var cf clientFlags
	var headers []string
	c := &cobra.Command{
		Use:   "explain [METHOD] URL",
		Short: "Say what a client gets for a request, and why; no request is sent",
		Long: "Says in one line what the client gets, who decides so and where that is written, then the way there. What\n" +
			"depends on more than request and configuration, such as what is left of a limit, follows with \"or\". A token\n" +
			"in the header authorization is verified as the proxies do.",
		Example: "  penstock explain POST http://localhost:8080/support\n  penstock explain localhost:8080/account -H \"authorization: Bearer $(penstock token --subject alice)\"",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			url, err := requestURL(args[len(args)-1])
			if err != nil {
				return err
			}
			req := &pb.ExplainRequest{Method: "GET", Url: url, Project: cf.project, HeaderLines: headers}
			if len(args) == 2 {
				req.Method = strings.ToUpper(args[0])
			}
			for _, h := range headers {
				if !strings.Contains(h, ":") {
					return fmt.Errorf("-H %q must look like 'name: value'", h)
				}
			}
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := pb.NewExplainServiceClient(conn).Explain(ctx, req)
			if err != nil {
				return err
			}
			if cf.output != "text" {
				return cmp.Or(printMessage(cmd.OutOrStdout(), cf.output, resp), explainError(resp))
			}
			printExplain(cmd.OutOrStdout(), req, resp)
			return explainError(resp)
		},
	}
	cf.add(c)
	c.Flags().StringArrayVarP(&headers, "header", "H", nil, "request header (repeatable)")
	return c
}

// requestURL makes a whole URL of what people type to curl: localhost:8080/hello.
func requestURL(arg string) (string, error) {
	switch {
	case strings.Contains(arg, "://"):
		return arg, nil
	case arg == "" || strings.ContainsAny(arg[:1], "/?#"):
		return "", fmt.Errorf("%q names no host: write the whole URL, such as http://localhost:8080%s", arg, arg)
	}
	return "http://" + arg, nil
}

// explainError is an error for a request that cannot be sent at all.
func explainError(e *pb.ExplainResponse) error {
	if o := e.GetOutcome(); o.GetDecidedBy() == pb.ExplainDecider_EXPLAIN_DECIDER_NOT_SENT {
		return errors.New(strings.TrimPrefix(o.GetText(), "not sent: "))
	}
	return nil
}

func printExplain(w io.Writer, req *pb.ExplainRequest, e *pb.ExplainResponse) {
	fmt.Fprintf(w, "%s %s at revision %d\n", req.GetMethod(), req.GetUrl(), e.GetRevision())
	printOutcome(w, "outcome", e.GetOutcome())
	for _, o := range e.GetOutcome().GetMayBe() {
		printOutcome(w, "or", o)
	}
	for _, r := range e.GetRefused() {
		name := short(r.GetObject())
		if r.GetField() != "" {
			name += " (" + r.GetField() + ")"
		}
		fmt.Fprintf(w, "refused   %s: Envoy refused it: %s; %s\n", name, shorten(r.GetDetail()), r.GetServes())
	}
	if l := e.GetListener(); l != nil {
		fmt.Fprintf(w, "listener  %s %s on %s (hosts by %s)\n", short(l.GetGateway()), l.GetListener(), l.GetAddress(), l.GetLayout())
	}
	if e.GetHost() != "" {
		fmt.Fprintf(w, "host      %s\n", e.GetHost())
	}
	if r := e.GetRule(); r != nil {
		fmt.Fprintf(w, "route     %s, rule %s, from %s\n          matches %s\n", short(r.GetRoute()), r.GetRule(), origin(r.GetOrigin()), r.GetMatch())
	}
	for i, p := range e.GetPolicies() {
		head := "policies"
		if i > 0 {
			head = ""
		}
		from := p.GetFrom()
		if o := origin(p.GetOrigin()); o != "" {
			from += ", " + o
		}
		fmt.Fprintf(w, "%-9s %s: %s  [%s]\n", head, p.GetPolicy(), p.GetSummary(), from)
	}
	for _, b := range e.GetBackends() {
		name := short(b.GetName())
		if b.GetSubset() != "" {
			name += " subset " + b.GetSubset()
		}
		if b.GetPort() != 0 {
			name += fmt.Sprintf(" port %d", b.GetPort())
		}
		fmt.Fprintf(w, "backend   %s (%.4g%%)\n", name, b.GetPercent())
		for _, ep := range b.GetEndpoints() {
			fmt.Fprintf(w, "          endpoint %s\n", ep)
		}
		for _, i := range b.GetInstances() {
			fmt.Fprintf(w, "          instance %s %s", i.GetId(), strings.ToLower(strings.TrimPrefix(i.GetState().String(), "INSTANCE_STATE_")))
			// One that is starting has no address yet, one that waits for another start no process.
			if at := instanceAddress(i); at != "" {
				fmt.Fprintf(w, " at %s", at)
			}
			if i.GetPid() != 0 {
				fmt.Fprintf(w, ", pid %d", i.GetPid())
			}
			fmt.Fprintln(w)
		}
	}
	for i, m := range e.GetNotMatched() {
		if i == 0 {
			fmt.Fprintln(w, "not chosen:")
		}
		fmt.Fprintf(w, "  %s, rule %s (%s): %s\n", short(m.GetRoute()), m.GetRule(), origin(m.GetOrigin()), m.GetReason())
	}
}

// printOutcome prints what the client gets in one line, with the policy that decides so.
func printOutcome(w io.Writer, head string, o *pb.ExplainOutcome) {
	fmt.Fprintf(w, "%-9s %s", head, o.GetText())
	if p := o.GetPolicy(); p != nil {
		fmt.Fprintf(w, "; decided by %s, attached at %s", p.GetPolicy(), p.GetFrom())
		if at := origin(p.GetOrigin()); at != "" {
			fmt.Fprintf(w, ", %s", at)
		}
	}
	fmt.Fprintln(w)
}
