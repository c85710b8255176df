package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/penstock-gateway/penstock/internal/suggest"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// Every flag may be given in the environment: --data-dir as PENSTOCK_DATA_DIR. The
// command line wins over the environment, and that over a settings file. Decision 0029
// says why, and why secrets are not given so.

const envPrefix = "PENSTOCK_"

// Annotations of flags.
const (
	// envVariable names the variable of a flag, where it does not follow from its name.
	envVariable = "penstock_variable"
	// envGroup names a group of flags of which the command line gives all, or none: a
	// variable of one is not read when another one is given.
	envGroup = "penstock_variable_group"
)

// exclusiveGroups is the annotation by which cobra knows flags that exclude each other.
const exclusiveGroups = "cobra_annotation_mutually_exclusive"

// otherVariables are those that no flag has, with what they are for.
var otherVariables = map[string]string{
	"PENSTOCK_TOKEN":         "token for the configuration API, for pipelines; PENSTOCK_TOKEN_FILE is safer",
	"PENSTOCK_TOKEN_FILE":    "file that holds the token for the configuration API",
	"PENSTOCK_CA_FILE":       "certificate authority of the configuration API, for credentials that do not pin it",
	"PENSTOCK_CERT_FILE":     "client certificate for the configuration API, in place of a token",
	"PENSTOCK_KEY_FILE":      "key of PENSTOCK_CERT_FILE",
	"PENSTOCK_CONTEXTS_FILE": "file of the contexts that `penstock login` makes",
	"PENSTOCK_ENVOY":         "an Envoy to use in place of the pinned one",
	"PENSTOCK_LOG_FORMAT":    "text, json or auto",
}

// foreignVariables are made by Kubernetes for a Service named penstock, or by the tests.
var foreignVariables = regexp.MustCompile(`^PENSTOCK_((.*_)?SERVICE_(HOST|PORT)(_.*)?|(.*_)?PORT(_[0-9]+_(TCP|UDP|SCTP)(_.*)?)?|TEST_.*|SOAK.*|STORMS|CHURN|KILL_.*|STORE_.*|BENCH_.*)$`)

// variable is the name of the variable of a flag; "" for a flag without.
func variable(f *pflag.Flag) string {
	if v := f.Annotations[envVariable]; len(v) == 1 {
		return v[0]
	}
	if f.Name == "help" || f.Name == "version" && f.Value.Type() == "bool" {
		return ""
	}
	return envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
}

// setVariable gives a flag a variable of another name.
func setVariable(fl *pflag.FlagSet, flag, name string) {
	if err := fl.SetAnnotation(flag, envVariable, []string{name}); err != nil {
		panic(err) // the flag is not defined
	}
}

// groupVariable puts a flag in a group of which the command line gives all, or none.
func groupVariable(fl *pflag.FlagSet, flag, group string) {
	if err := fl.SetAnnotation(flag, envGroup, []string{group}); err != nil {
		panic(err) // the flag is not defined
	}
}

// readEnvironment sets the flags that the command line does not give.
func readEnvironment(c *cobra.Command) error {
	var errs []error
	given := map[string]bool{} // groups with a flag on the command line
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			for _, g := range groups(f) {
				given[g] = true
			}
		}
	})
	c.Flags().VisitAll(func(f *pflag.Flag) {
		name := variable(f)
		value := os.Getenv(name)
		if name == "" || value == "" || f.Changed || slices.ContainsFunc(groups(f), func(g string) bool { return given[g] }) {
			return
		}
		if err := c.Flags().Set(f.Name, value); err != nil {
			if parse, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
				err = parse.Unwrap()
			}
			errs = append(errs, fmt.Errorf("%s=%q is not valid for --%s of %s: %w", name, value, f.Name, c.CommandPath(), err))
		}
	})
	return errors.Join(errs...)
}

func groups(f *pflag.Flag) []string {
	return slices.Concat(f.Annotations[exclusiveGroups], f.Annotations[envGroup])
}

// described is a variable, with the flag that it stands for and the commands that have it.
type described struct {
	flag, usage string
	commands    []string
}

// variables are all variables of the commands below a root, by name.
func variables(root *cobra.Command) map[string]*described {
	out := map[string]*described{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Runnable() && !c.Hidden {
			c.Flags().VisitAll(func(f *pflag.Flag) {
				name := variable(f)
				if name == "" {
					return
				}
				d := out[name]
				if d == nil {
					_, usage := pflag.UnquoteUsage(f)
					d = &described{flag: "--" + f.Name, usage: usage}
					out[name] = d
				}
				d.commands = append(d.commands, strings.TrimPrefix(c.CommandPath(), "penstock "))
			})
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	return out
}

// warnOfVariables names the variables that look like ours and are not: a misspelt one
// would go unnoticed.
func warnOfVariables(w io.Writer, root *cobra.Command, environ []string) {
	known := variables(root)
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || known[name] != nil || otherVariables[name] != "" || foreignVariables.MatchString(name) {
			continue
		}
		names := slices.Concat(slices.Collect(maps.Keys(known)), slices.Collect(maps.Keys(otherVariables)))
		hint := suggest.Name(name, names)
		if !strings.HasPrefix(hint, "did you mean") {
			hint = "`penstock help environment` lists those that it reads"
		}
		fmt.Fprintf(w, "warning: Penstock does not read the environment variable %s; %s\n", name, hint)
	}
}

// credentialVariables are how commands are told a credential.
var credentialVariables = []string{"PENSTOCK_TOKEN", "PENSTOCK_TOKEN_FILE", "PENSTOCK_CERT_FILE", "PENSTOCK_KEY_FILE"}

// dropVariables removes from the environment of this process what stands for flags: its
// children, parts of Penstock, get theirs as arguments, and would take what was meant
// for this process. A credential for a control plane goes with them: it may be for another
// one, and neither Envoy nor Jaeger needs it.
func dropVariables(root *cobra.Command, environ []string) error {
	all := variables(root)
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if (all[name] == nil || name == toolbox.EnvDir) && !slices.Contains(credentialVariables, name) {
			continue
		}
		if err := os.Unsetenv(name); err != nil {
			return err
		}
	}
	return nil
}

// withEnvironment has all commands below a root read the environment, and say so in
// their help.
func withEnvironment(root *cobra.Command) {
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		warnOfVariables(c.ErrOrStderr(), root, os.Environ())
		return readEnvironment(c)
	}
	root.AddCommand(&cobra.Command{
		Use:   "environment",
		Short: "The environment variables that stand for flags",
		Long:  "Filled in when it is asked for.",
	})
	usage := root.UsageTemplate()
	root.SetUsageTemplate(usage + "{{environmentHint .}}")
	help := root.HelpFunc()
	root.SetHelpFunc(func(c *cobra.Command, args []string) {
		if c.Name() == "environment" && c.Parent() == root {
			printVariables(c.OutOrStdout(), root)
			return
		}
		help(c, args)
	})
}

func init() {
	cobra.AddTemplateFunc("environmentHint", environmentHint)
}

// environmentHint is a line of the help of a command with flags.
func environmentHint(c *cobra.Command) string {
	example := ""
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if example == "" && variable(f) != "" {
			example = fmt.Sprintf("%s for --%s", variable(f), f.Name)
		}
	})
	if example == "" {
		return ""
	}
	return "\nFlags may be given in the environment, too: " + example + ". The command line wins.\n"
}

func printVariables(w io.Writer, root *cobra.Command) {
	fmt.Fprint(w, "Every flag may be given in the environment, for all commands that have it. The command line wins over the\n"+
		"environment, and that over the settings file of `penstock up`. An empty variable is as good as none. Values of\n"+
		"lists are separated by commas; those of --run, --header and --claim are taken whole, one for a variable.\n\n")
	all := variables(root)
	for name, text := range otherVariables {
		if all[name] == nil {
			all[name] = &described{usage: text}
		}
	}
	reference := struct{ io.Writer }{w} // whole at a terminal, too: it is there to be read
	table(reference, "VARIABLE FLAG COMMANDS MEANING", func(row func(...any)) {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			d := all[name]
			commands := strings.Join(d.commands, ", ")
			if n := len(d.commands); n > 3 {
				commands = fmt.Sprintf("%s and %d more", strings.Join(d.commands[:2], ", "), n-2)
			}
			row(name, d.flag, commands, firstSentence(d.usage))
		}
	})
}

// firstSentence is the beginning of a text, up to what is said in addition.
func firstSentence(s string) string {
	if i := strings.IndexAny(s, ";("); i > 0 {
		s = s[:i]
	}
	return cmp.Or(strings.TrimSpace(s), "-")
}
