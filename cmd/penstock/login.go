package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// loginTimeout bounds the call by which a login is tried.
const loginTimeout = 15 * time.Second

func newLoginCommand() *cobra.Command {
	var x connect.Context
	var name, tokenFile string
	c := &cobra.Command{
		Use:   "login --server HOST:PORT",
		Short: "Make a context for a control plane elsewhere, and use it from now on",
		Long: "Tries the credential, and keeps it with the address in a file that only you can read. The token is read from\n" +
			"--token-file, from PENSTOCK_TOKEN, or from the standard input; a client certificate is used in place. A token of\n" +
			"Penstock pins the certificate authority of the control plane, so no file is needed to know it.\n" +
			"A pipeline needs no login: PENSTOCK_SERVER and PENSTOCK_TOKEN (or PENSTOCK_TOKEN_FILE) are enough.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := readCredential(&x, tokenFile, cmd.InOrStdin()); err != nil {
				return err
			}
			return login(cmd.Context(), cmd.OutOrStdout(), name, &x)
		},
	}
	fl := c.Flags()
	fl.StringVar(&x.Server, "server", "", "HOST:PORT of the control plane (its --api-listen)")
	fl.StringVar(&x.HTTP, "http", "", "HOST:PORT of its HTTP server, for \"debug\" and \"quarantine\"")
	fl.StringVar(&name, "name", "", "name of the context (default: the host of --server)")
	fl.StringVar(&tokenFile, "token-file", "", "file with the token, or - for the standard input")
	fl.StringVar(&x.CAFile, "ca", "", "certificate authority of the control plane, for credentials that do not pin it")
	fl.StringVar(&x.CertFile, "cert", "", "client certificate, in place of a token")
	fl.StringVar(&x.KeyFile, "key", "", "key of --cert")
	fl.StringVar(&x.Project, "project", "", "project of short names in this context")
	_ = c.MarkFlagRequired("server")
	c.MarkFlagsRequiredTogether("cert", "key")
	return c
}

// readCredential completes a context with the token, and makes its paths absolute.
func readCredential(x *connect.Context, tokenFile string, in io.Reader) error {
	for _, p := range []*string{&x.CAFile, &x.CertFile, &x.KeyFile} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	x.Token = strings.TrimSpace(os.Getenv("PENSTOCK_TOKEN"))
	if tokenFile == "" && (x.Token != "" || x.CertFile != "") {
		return nil
	}
	if tokenFile == "" {
		tokenFile = "-"
	}
	var err error
	if x.Token, err = connect.ReadToken(tokenFile, in); err != nil {
		return fmt.Errorf("no token: %w; give --token-file, PENSTOCK_TOKEN or the standard input", err)
	}
	return nil
}

func login(ctx context.Context, w io.Writer, name string, x *connect.Context) error {
	target, err := x.Target()
	if err != nil {
		return err
	}
	if name == "" {
		name, _, _ = strings.Cut(target.Address, ":")
	}
	if !connect.ContextName.MatchString(name) {
		return fmt.Errorf("--name %q: it may hold letters, digits and . _ -, at most 63 of them", name)
	}
	conn, err := target.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	who, err := pb.NewAccessServiceClient(conn).WhoAmI(ctx, &pb.WhoAmIRequest{})
	if err != nil {
		return err
	}
	all, err := connect.LoadContexts()
	if err != nil {
		return err
	}
	if all.Contexts == nil {
		all.Contexts = map[string]*connect.Context{}
	}
	all.Contexts[name], all.Current = x, name
	if err := all.Save(); err != nil {
		return err
	}
	fmt.Fprintf(w, "logged in to %s as %s; the context %s is used from now on\n", target.Address, who.GetIdentity(), name)
	return nil
}

func newContextCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "context",
		Short: "Choose between control planes that you logged in to",
		Long:  "A context is an address and a credential, made by `penstock login`. Without one in use, commands talk to the control plane of this machine.",
	}
	c.AddCommand(
		&cobra.Command{Use: "ls", Short: "List the contexts", Args: cobra.NoArgs, Example: "  penstock context ls", RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := connect.LoadContexts()
			if err != nil {
				return err
			}
			table(cmd.OutOrStdout(), "USED NAME SERVER PROJECT", func(row func(...any)) {
				for _, n := range slices.Sorted(maps.Keys(all.Contexts)) {
					row(map[bool]string{true: "*"}[n == all.Current], n, all.Contexts[n].Server, all.Contexts[n].Project)
				}
			})
			return nil
		}},
		&cobra.Command{Use: "use NAME", Short: "Use a context from now on; - is none", Args: cobra.ExactArgs(1), Example: "  penstock context use -", RunE: func(cmd *cobra.Command, args []string) error {
			return changeContexts(func(all *connect.Contexts) error {
				if args[0] == "-" {
					all.Current = ""
					fmt.Fprintln(cmd.OutOrStdout(), "commands talk to the control plane of this machine")
					return nil
				}
				_, err := all.Get(args[0])
				if err == nil {
					all.Current = args[0]
					fmt.Fprintf(cmd.OutOrStdout(), "commands talk to %s\n", all.Contexts[args[0]].Server)
				}
				return err
			})
		}},
		&cobra.Command{Use: "rm NAME", Short: "Forget a context and its credential", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return changeContexts(func(all *connect.Contexts) error {
				if _, err := all.Get(args[0]); err != nil {
					return err
				}
				delete(all.Contexts, args[0])
				if all.Current == args[0] {
					all.Current = ""
				}
				fmt.Fprintln(cmd.OutOrStdout(), "forgotten here; `penstock access token revoke` ends the token everywhere")
				return nil
			})
		}},
		&cobra.Command{Use: "show [NAME]", Short: "Show a context, without its token", Args: cobra.MaximumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return showContext(cmd.OutOrStdout(), args)
		}},
	)
	return c
}

func changeContexts(change func(*connect.Contexts) error) error {
	all, err := connect.LoadContexts()
	if err != nil {
		return err
	}
	return errors.Join(change(all), all.Save())
}

func showContext(w io.Writer, args []string) error {
	all, err := connect.LoadContexts()
	if err != nil {
		return err
	}
	name := all.Current
	if len(args) > 0 {
		name = args[0]
	}
	if name == "" {
		fmt.Fprintln(w, "no context is in use: commands talk to the control plane of this machine")
		return nil
	}
	x, err := all.Get(name)
	if err != nil {
		return err
	}
	credential := "client certificate " + x.CertFile
	switch {
	case x.TokenFile != "":
		credential = "token in " + x.TokenFile
	case x.Token != "":
		credential = "token (not shown)"
	}
	fmt.Fprintf(w, "name        %s\nserver      %s\ncredential  %s\n", name, x.Server, credential)
	for _, l := range [][2]string{{"http", x.HTTP}, {"authority", x.CAFile}, {"project", x.Project}} {
		if l[1] != "" {
			fmt.Fprintf(w, "%-10s  %s\n", l[0], l[1])
		}
	}
	return nil
}
