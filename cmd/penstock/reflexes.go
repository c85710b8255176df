package main

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/penstock-gateway/penstock/internal/suggest"
)

// refuseUnknown lets every command refuse subcommands and flags that it does not have,
// and say which were meant. Cobra alone prints the help and succeeds for an unknown
// subcommand below the first level, so a script that misspells one would go on.
func refuseUnknown(c *cobra.Command) {
	c.SetFlagErrorFunc(flagError)
	for _, sub := range c.Commands() {
		refuseUnknown(sub)
	}
	if c.Runnable() || !c.HasSubCommands() || !c.HasParent() {
		return
	}
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		var names []string
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
			for _, alias := range sub.SuggestFor {
				if alias == args[0] {
					return fmt.Errorf("unknown command %q for %q: write %s", args[0], c.CommandPath(), sub.CommandPath())
				}
			}
		}
		return hinted(fmt.Sprintf("unknown command %q for %q", args[0], c.CommandPath()), suggest.Name(args[0], names))
	}
}

// flagError adds to an error of a flag which one was meant.
func flagError(c *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return fmt.Errorf("%s: %w", c.CommandPath(), err)
	}
	name := unknown.GetSpecifiedName()
	if short := unknown.GetSpecifiedShortnames(); short != "" && unicode.IsDigit(rune(name[0])) {
		return fmt.Errorf("%s: %w: -%s is read as a flag, and no number here is negative", c.CommandPath(), err, short)
	}
	var names []string
	c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	hint := suggest.Name(name, names)
	if !strings.HasPrefix(hint, "did you mean") { // all flags are what --help lists
		hint = fmt.Sprintf("`%s --help` lists its flags", c.CommandPath())
	}
	return hinted(fmt.Sprintf("%s: %v", c.CommandPath(), err), hint)
}

func hinted(problem, hint string) error {
	if hint == "" {
		return errors.New(problem)
	}
	return fmt.Errorf("%s; %s", problem, hint)
}
