package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
)

func newProxyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "proxy",
		Short: "Let a proxy join, run it, renew its certificate, revoke it",
		Long: "A new proxy gets its identity without files copied by hand: `penstock proxy token` beside the control\n" +
			"plane prints a token for one join, `penstock proxy join` beside the new Envoy uses it. The private key is\n" +
			"made there and never leaves the machine.",
	}
	c.AddCommand(newProxyTokenCommand(), newProxyJoinCommand(), newProxyRunCommand(), newProxyStatusCommand(), newProxyRenewCommand(),
		newProxyRevokeCommand(), newProxyAllowCommand(), newProxyRevokedCommand())
	return c
}

func newProxyTokenCommand() *cobra.Command {
	var cf clientFlags
	var gateway, name string
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "token --gateway GATEWAY --name NAME",
		Short: "Print a token with which one new proxy can join, once",
		Long: "Prints a join token: for one proxy of one gateway (\"-\": all gateways of the project), for one join, for a\n" +
			"short time. It also holds the hash of the certificate authority, so that the new proxy knows whom it talks to.",
		Example: "  penstock proxy token --gateway edge --name edge-2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := pb.NewProxyAdmissionServiceClient(conn).CreateJoinToken(ctx, &pb.CreateJoinTokenRequest{
				Project: cf.project, Gateway: gateway, Name: name, Ttl: durationpb.New(ttl),
			})
			if err != nil {
				return err
			}
			if cf.output != "text" {
				return printMessage(cmd.OutOrStdout(), cf.output, resp)
			}
			fmt.Fprintln(cmd.OutOrStdout(), resp.GetToken())
			// Not on the standard output, which scripts read the token from.
			fmt.Fprintf(cmd.ErrOrStderr(), "for %s, once, until %s\n", resp.GetIdentity(), resp.GetExpireTime().AsTime().Local().Format(time.DateTime))
			return nil
		},
	}
	cf.add(c)
	c.Flags().StringVar(&gateway, "gateway", "", "gateway whose listeners the proxy serves; - for all of the project")
	c.Flags().StringVar(&name, "name", "", "name of the new proxy, its own among those of the gateway")
	c.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token may be used, at most 24h")
	_ = c.MarkFlagRequired("gateway")
	_ = c.MarkFlagRequired("name")
	return c
}

// subjectFlags name a proxy, or one certificate, for revoke and allow.
type subjectFlags struct {
	gateway, serial string
}

func (f *subjectFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.gateway, "gateway", "", "gateway of the proxy, when the name alone does not say which one")
	c.Flags().StringVar(&f.serial, "serial", "", "one certificate by its serial number (hexadecimal) instead of a proxy")
}

// identity is the SPIFFE id that is meant; "" with --serial. known are the
// identities that a short name is looked for in.
func (f *subjectFlags) identity(project string, args []string, known func() ([]string, error)) (string, error) {
	switch {
	case f.serial != "" && len(args) > 0:
		return "", fmt.Errorf("say the name %q or --serial, not both", args[0])
	case f.serial != "":
		return "", nil
	case len(args) == 0:
		return "", fmt.Errorf("say which proxy: its name, its SPIFFE id, or --serial of one certificate")
	case strings.HasPrefix(args[0], "spiffe://"):
		_, _, _, err := pki.ParseProxyID(args[0])
		return args[0], err
	case f.gateway != "":
		id := pki.ProxyID(project, f.gateway, args[0])
		_, _, _, err := pki.ParseProxyID(id)
		return id, err
	}
	all, err := known()
	if err != nil {
		return "", err
	}
	var found []string
	for _, id := range all {
		if p, _, n, err := pki.ParseProxyID(id); err == nil && p == project && n == args[0] {
			found = append(found, id)
		}
	}
	slices.Sort(found)
	switch found = slices.Compact(found); len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("no proxy %q of project %q is known here: say its --gateway, or its whole SPIFFE id", args[0], project)
	}
	return "", fmt.Errorf("%q may be any of %s: say its --gateway, or the whole SPIFFE id", args[0], strings.Join(found, ", "))
}

func newProxyRevokeCommand() *cobra.Command {
	var cf clientFlags
	var sf subjectFlags
	var reason string
	c := &cobra.Command{
		Use:   "revoke NAME | SPIFFE-ID | --serial SERIAL",
		Short: "Close a proxy's streams and refuse it from now on",
		Long: "Closes the proxy's streams on every replica of the control plane and refuses new ones, renewals and joins,\n" +
			"until `penstock proxy allow`. The Envoy itself serves on with the configuration that it has: to stop it, stop\n" +
			"its process. With --serial only one certificate is refused; a newer one of the same proxy stays good.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			id, err := sf.identity(cf.project, args, func() ([]string, error) { return connectedIDs(ctx, pb.NewProxyServiceClient(conn)) })
			if err != nil {
				return err
			}
			r := &pb.RevokeProxyRequest{Reason: reason, Subject: &pb.RevokeProxyRequest_Identity{Identity: id}}
			if id == "" {
				r.Subject = &pb.RevokeProxyRequest_Serial{Serial: sf.serial}
			}
			resp, err := pb.NewProxyAdmissionServiceClient(conn).RevokeProxy(ctx, r)
			if err != nil {
				return err
			}
			if cf.output != "text" {
				return printMessage(cmd.OutOrStdout(), cf.output, resp)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "revoked %s\n", subjectText(resp.GetRevocation()))
			return nil
		},
	}
	cf.add(c)
	sf.add(c)
	c.Flags().StringVarP(&reason, "reason", "m", "", "why, for the audit log and the list")
	return c
}

func newProxyAllowCommand() *cobra.Command {
	var cf clientFlags
	var sf subjectFlags
	c := &cobra.Command{
		Use:   "allow NAME | SPIFFE-ID | --serial SERIAL",
		Short: "Undo revoke",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			client := pb.NewProxyAdmissionServiceClient(conn)
			id, err := sf.identity(cf.project, args, func() ([]string, error) {
				resp, err := client.ListRevocations(ctx, &pb.ListRevocationsRequest{})
				var ids []string
				for _, r := range resp.GetRevocations() {
					ids = append(ids, r.GetIdentity())
				}
				return ids, err
			})
			if err != nil {
				return err
			}
			r := &pb.AllowProxyRequest{Subject: &pb.AllowProxyRequest_Identity{Identity: id}}
			what := id
			if id == "" {
				r.Subject, what = &pb.AllowProxyRequest_Serial{Serial: sf.serial}, "the certificate "+sf.serial
			}
			resp, err := client.AllowProxy(ctx, r)
			if err != nil {
				return err
			}
			if cf.output != "text" {
				return printMessage(cmd.OutOrStdout(), cf.output, resp)
			}
			if resp.GetWasRevoked() {
				fmt.Fprintf(cmd.OutOrStdout(), "allowed %s\n", what)
			} else {
				fmt.Fprintf(cmd.OutOrStdout(), "%s was not revoked\n", what)
			}
			return nil
		},
	}
	cf.add(c)
	sf.add(c)
	return c
}

func newProxyRevokedCommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use:   "revoked",
		Short: "List what is revoked",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := pb.NewProxyAdmissionServiceClient(conn).ListRevocations(ctx, &pb.ListRevocationsRequest{})
			if err != nil {
				return err
			}
			if cf.output != "text" {
				return printMessage(cmd.OutOrStdout(), cf.output, resp)
			}
			table(cmd.OutOrStdout(), "SUBJECT BY WHEN REASON", func(row func(...any)) {
				for _, r := range resp.GetRevocations() {
					row(subjectText(r), r.GetAuthor(), ago(r.GetRevokeTime()), r.GetReason())
				}
			})
			return nil
		},
	}
	cf.addShared(c)
	return c
}

func subjectText(r *pb.Revocation) string {
	if s := r.GetSerial(); s != "" {
		return "certificate:" + s
	}
	return r.GetIdentity()
}

// connectedIDs are the identities of the proxies that are connected to the
// replica that answers.
func connectedIDs(ctx context.Context, c pb.ProxyServiceClient) ([]string, error) {
	resp, err := c.ListProxies(ctx, &pb.ListProxiesRequest{})
	var ids []string
	for _, p := range resp.GetProxies() {
		// Each channel of a gRPC client is listed, with a mark of its own.
		id, _, _ := strings.Cut(p.GetIdentity(), "#")
		ids = append(ids, id)
	}
	return ids, err
}
