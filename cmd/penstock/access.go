package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func newAccessCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "access",
		Short: "See and change who may do what with the configuration API",
		Long: "A role is a set of verbs on kinds; a grant gives somebody a role in a project, or in all. Nothing is allowed\n" +
			"without one, but to the owner of the control plane on its own machine. Nobody can give what he does not hold.",
	}
	c.AddCommand(newWhoAmICommand(), newCanICommand(), newAccessListCommand(), newRolesCommand(), newRoleSetCommand(), newRoleDeleteCommand(),
		newGrantCommand(), newUngrantCommand(), newAccessTokenCommand(), newCertificateCommand())
	return c
}

// ofOneProject is the annotation of commands of accessCall that are about a project.
const ofOneProject = "penstock_project"

var perProject = map[string]string{ofOneProject: "yes"}

// accessCall makes a command that calls the AccessService and prints the answer.
func accessCall(c *cobra.Command, call func(ctx context.Context, cf *clientFlags, client pb.AccessServiceClient, cmd *cobra.Command, args []string) (proto.Message, error), text func(cmd *cobra.Command, m proto.Message)) *cobra.Command {
	cf := &clientFlags{}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, conn, err := cf.dial(cmd.Context())
		if err != nil {
			return err
		}
		defer func(conn *grpc.ClientConn) { conn.Close() }(conn)
		m, err := call(ctx, cf, pb.NewAccessServiceClient(conn), cmd, args)
		if err != nil {
			return err
		}
		if cf.output != "text" {
			return printMessage(cmd.OutOrStdout(), cf.output, m)
		}
		text(cmd, m)
		return nil
	}
	if c.Annotations[ofOneProject] != "" {
		cf.add(c)
	} else {
		cf.addShared(c)
	}
	return c
}

func newWhoAmICommand() *cobra.Command {
	return accessCall(&cobra.Command{Use: "whoami", Short: "Show as whom the control plane knows you, and your roles", Args: cobra.NoArgs, Example: "  penstock access whoami"},
		func(ctx context.Context, _ *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, _ []string) (proto.Message, error) {
			return c.WhoAmI(ctx, &pb.WhoAmIRequest{})
		},
		func(cmd *cobra.Command, m proto.Message) {
			r := m.(*pb.WhoAmIResponse)
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "%s, by the %s", r.GetIdentity(), r.GetVia())
			if r.GetExpireTime() != nil {
				fmt.Fprintf(w, ", until %s", r.GetExpireTime().AsTime().Local().Format(time.DateTime))
			}
			fmt.Fprintln(w)
			for _, g := range r.GetGrants() {
				fmt.Fprintf(w, "  %s\n", grantText(g))
			}
			if len(r.GetGrants()) == 0 {
				fmt.Fprintln(w, "  no role: nothing is allowed")
			}
		})
}

func grantText(g *pb.Grant) string {
	if g.GetProject() == "*" {
		return g.GetRole() + " in all projects"
	}
	return g.GetRole() + " in the project " + g.GetProject()
}

// errNotAllowed is the answer "no" of can-i, for the exit code.
var errNotAllowed = errors.New("not allowed")

func newCanICommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use:     "can-i VERB KIND",
		Short:   "Say whether you may do something; the exit code is 0 for yes",
		Example: "  penstock access can-i update routes\n  penstock access can-i relax isolation --project default\n  penstock access can-i create access --project '*'",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, conn, err := cf.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			r, err := pb.NewAccessServiceClient(conn).CheckAccess(ctx, &pb.CheckAccessRequest{Verb: args[0], Kind: args[1], Project: cf.project})
			if err != nil {
				return err
			}
			if cf.output != "text" {
				err = printMessage(cmd.OutOrStdout(), cf.output, r)
			} else {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", map[bool]string{true: "yes", false: "no"}[r.GetAllowed()], r.GetReason())
			}
			if err == nil && !r.GetAllowed() {
				return errNotAllowed
			}
			return err
		},
	}
	cf.add(c)
	return c
}

func newAccessListCommand() *cobra.Command {
	return accessCall(&cobra.Command{Use: "ls", Short: "List who has which role", Args: cobra.NoArgs, Example: "  penstock access ls"},
		func(ctx context.Context, _ *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, _ []string) (proto.Message, error) {
			return c.ListBindings(ctx, &pb.ListBindingsRequest{})
		},
		func(cmd *cobra.Command, m proto.Message) {
			table(cmd.OutOrStdout(), "SUBJECT ROLE PROJECT BY WHEN", func(row func(...any)) {
				for _, b := range m.(*pb.ListBindingsResponse).GetBindings() {
					row(b.GetSubject(), b.GetGrant().GetRole(), b.GetGrant().GetProject(), b.GetAuthor(), ago(b.GetCreateTime()))
				}
			})
		})
}

func newRolesCommand() *cobra.Command {
	return accessCall(&cobra.Command{Use: "roles", Short: "List the roles and what they permit", Args: cobra.NoArgs, Example: "  penstock access roles"},
		func(ctx context.Context, _ *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, _ []string) (proto.Message, error) {
			return c.ListRoles(ctx, &pb.ListRolesRequest{})
		},
		func(cmd *cobra.Command, m proto.Message) {
			w := cmd.OutOrStdout()
			for _, r := range m.(*pb.ListRolesResponse).GetRoles() {
				kind := ""
				if r.GetBuiltin() {
					kind = " (built in)"
				}
				fmt.Fprintf(w, "%s%s: %s\n", r.GetName(), kind, r.GetDescription())
				for _, p := range r.GetPermissions() {
					fmt.Fprintf(w, "  %s: %s\n", strings.Join(p.GetVerbs(), ", "), strings.Join(p.GetKinds(), ", "))
				}
			}
		})
}

func newRoleSetCommand() *cobra.Command {
	var allow []string
	var description string
	c := accessCall(&cobra.Command{
		Use: "role NAME --allow VERB=KIND,…", Short: "Create or replace a role", Args: cobra.ExactArgs(1),
		Example: "  penstock access role router --allow read=routes,backends --allow update=routes",
	},
		func(ctx context.Context, _ *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, args []string) (proto.Message, error) {
			role := &pb.Role{Name: args[0], Description: description}
			for _, a := range allow {
				verb, kinds, ok := strings.Cut(a, "=")
				if !ok {
					return nil, fmt.Errorf("--allow %q is not VERB=KIND,…", a)
				}
				role.Permissions = append(role.Permissions, &pb.Permissions{Verbs: []string{verb}, Kinds: strings.Split(kinds, ",")})
			}
			return c.SetRole(ctx, &pb.SetRoleRequest{Role: role})
		},
		func(cmd *cobra.Command, m proto.Message) {
			fmt.Fprintf(cmd.OutOrStdout(), "role %s is in force\n", m.(*pb.SetRoleResponse).GetRole().GetName())
		})
	c.Flags().StringArrayVar(&allow, "allow", nil, "a verb and the kinds that it is allowed on, VERB=KIND,… (repeatable)")
	c.Flags().StringVar(&description, "description", "", "what the role is for")
	_ = c.MarkFlagRequired("allow")
	return c
}

func newRoleDeleteCommand() *cobra.Command {
	return accessCall(&cobra.Command{Use: "role-delete NAME", Short: "Delete a role that nobody has", Args: cobra.ExactArgs(1), Example: "  penstock access role-delete router"},
		func(ctx context.Context, _ *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, args []string) (proto.Message, error) {
			return c.DeleteRole(ctx, &pb.DeleteRoleRequest{Name: args[0]})
		},
		func(cmd *cobra.Command, _ proto.Message) { fmt.Fprintln(cmd.OutOrStdout(), "deleted") })
}

func newGrantCommand() *cobra.Command {
	return accessCall(&cobra.Command{
		Annotations: perProject,
		Use:         "grant WHO ROLE", Short: "Give somebody a role in a project; --project '*' is all", Args: cobra.ExactArgs(2),
		Long: "WHO is user:NAME of a client certificate, token:NAME of a token, or, of the declared OpenID Connect issuer\n" +
			"(--oidc-issuer of the control plane), oidc:ISSUER#NAME or group:NAME.",
		Example: "  penstock access grant user:bob editor --project default\n  penstock access grant token:ci deployer --project '*'\n" +
			"  penstock access grant group:platform admin --project '*'\n  penstock access grant 'oidc:https://idp.example.com#1234' viewer",
	},
		func(ctx context.Context, cf *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, args []string) (proto.Message, error) {
			return c.CreateBinding(ctx, &pb.CreateBindingRequest{Binding: &pb.Binding{Subject: args[0], Grant: &pb.Grant{Role: args[1], Project: cf.project}}})
		},
		func(cmd *cobra.Command, m proto.Message) {
			b := m.(*pb.CreateBindingResponse).GetBinding()
			fmt.Fprintf(cmd.OutOrStdout(), "%s is %s\n", b.GetSubject(), grantText(b.GetGrant()))
		})
}

func newUngrantCommand() *cobra.Command {
	return accessCall(&cobra.Command{
		Annotations: perProject,
		Use:         "ungrant WHO ROLE", Short: "Take a role in a project from somebody", Args: cobra.ExactArgs(2),
		Example: "  penstock access ungrant user:bob editor --project default",
	},
		func(ctx context.Context, cf *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, args []string) (proto.Message, error) {
			return c.DeleteBinding(ctx, &pb.DeleteBindingRequest{Subject: args[0], Grant: &pb.Grant{Role: args[1], Project: cf.project}})
		},
		func(cmd *cobra.Command, _ proto.Message) { fmt.Fprintln(cmd.OutOrStdout(), "taken away") })
}

func newAccessTokenCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "token", Short: "Issue, list and revoke tokens of the configuration API",
		Long: "These are for the configuration API. `penstock token` prints a token for the routes of the gateway.",
	}
	c.AddCommand(newAccessTokenCreateCommand(), newAccessTokenListCommand(), newAccessTokenRevokeCommand())
	return c
}

func newAccessTokenCreateCommand() *cobra.Command {
	var roles []string
	var ttl time.Duration
	c := accessCall(&cobra.Command{
		Annotations: perProject,
		Use:         "create NAME --role ROLE", Short: "Print a new token, once", Args: cobra.ExactArgs(1),
		Long: "Prints a token with roles in a project (--project; '*' is all). It is shown once and kept as a hash. It also holds the\n" +
			"hash of the certificate authority, so whoever uses it knows the control plane without a file.",
		Example: "  penstock access token create ci --role deployer --project default --ttl 720h",
	},
		func(ctx context.Context, cf *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, args []string) (proto.Message, error) {
			t := &pb.Token{Name: args[0]}
			for _, r := range roles {
				t.Grants = append(t.Grants, &pb.Grant{Role: r, Project: cf.project})
			}
			return c.CreateToken(ctx, &pb.CreateTokenRequest{Token: t, Ttl: durationpb.New(ttl)})
		},
		func(cmd *cobra.Command, m proto.Message) {
			r := m.(*pb.CreateTokenResponse)
			fmt.Fprintln(cmd.OutOrStdout(), r.GetSecret())
			var all []string
			for _, g := range r.GetToken().GetGrants() {
				all = append(all, grantText(g))
			}
			// Not on the standard output, which scripts read the token from.
			fmt.Fprintf(cmd.ErrOrStderr(), "token:%s: %s, until %s\n", r.GetToken().GetName(), strings.Join(all, ", "), r.GetToken().GetExpireTime().AsTime().Local().Format(time.DateTime))
		})
	c.Flags().StringSliceVar(&roles, "role", nil, "a role that it has (repeatable)")
	c.Flags().DurationVar(&ttl, "ttl", 90*24*time.Hour, "how long it lasts, 1m to 8784h")
	_ = c.MarkFlagRequired("role")
	return c
}

func newAccessTokenListCommand() *cobra.Command {
	return accessCall(&cobra.Command{Use: "ls", Short: "List the tokens that were issued", Args: cobra.NoArgs, Example: "  penstock access token ls"},
		func(ctx context.Context, _ *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, _ []string) (proto.Message, error) {
			return c.ListTokens(ctx, &pb.ListTokensRequest{})
		},
		func(cmd *cobra.Command, m proto.Message) {
			table(cmd.OutOrStdout(), "NAME GRANTS BY ISSUED EXPIRES", func(row func(...any)) {
				for _, t := range m.(*pb.ListTokensResponse).GetTokens() {
					var grants []string
					for _, g := range t.GetGrants() {
						grants = append(grants, g.GetRole()+"@"+g.GetProject())
					}
					row(t.GetName(), strings.Join(grants, ","), t.GetAuthor(), ago(t.GetCreateTime()), t.GetExpireTime().AsTime().Local().Format(time.DateTime))
				}
			})
		})
}

func newAccessTokenRevokeCommand() *cobra.Command {
	return accessCall(&cobra.Command{Use: "revoke NAME", Short: "End a token, and the calls that it is used for", Args: cobra.ExactArgs(1), Example: "  penstock access token revoke ci"},
		func(ctx context.Context, _ *clientFlags, c pb.AccessServiceClient, _ *cobra.Command, args []string) (proto.Message, error) {
			return c.RevokeToken(ctx, &pb.RevokeTokenRequest{Name: args[0]})
		},
		func(cmd *cobra.Command, _ proto.Message) { fmt.Fprintln(cmd.OutOrStdout(), "revoked") })
}
