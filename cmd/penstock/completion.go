package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// completionTimeout bounds how long a shell waits for names. Without a control plane
// there are none, and nothing is said.
const completionTimeout = time.Second

// completeNames has the shell complete what the commands below a root take: kinds,
// names of objects, templates and contexts.
func completeNames(root *cobra.Command) {
	names := func(kinds ...string) cobra.CompletionFunc {
		return func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return liveNames(c, kinds...), cobra.ShellCompDirectiveNoFileComp
		}
	}
	arguments := map[string]cobra.CompletionFunc{
		"get": kindAndName, "delete": kindAndName, "list": kindAndName, "history": kindAndName, "route delete": names("routes"),
		"context use": contextNames,
	}
	for _, verb := range strings.Fields("invoke logs describe explain-scale scale rollback promote delete") {
		arguments["fn "+verb] = names(gateway.KindFunctions)
	}
	flags := map[string]cobra.CompletionFunc{
		"context": contextNames, "project": projectNames,
		"template": cobra.FixedCompletions(templateNames(), cobra.ShellCompDirectiveNoFileComp),
		"output":   cobra.FixedCompletions([]string{"text", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp),
		"backend":  names("backends"),
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		path := strings.TrimPrefix(c.CommandPath(), root.Name()+" ")
		if complete := arguments[path]; complete != nil {
			c.ValidArgsFunction = complete
		}
		for name, complete := range flags {
			if c.Flags().Lookup(name) == nil {
				continue
			}
			if err := c.RegisterFlagCompletionFunc(name, complete); err != nil {
				panic(err) // a flag with two completions
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// kindAndName completes the kind first, and then names of it.
func kindAndName(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return kinds, cobra.ShellCompDirectiveNoFileComp
	}
	kind, err := collection(args[0])
	if err != nil || c.Name() == "list" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return liveNames(c, kind), cobra.ShellCompDirectiveNoFileComp
}

// liveObjects reads from the control plane that the flags of a command name.
func liveObjects(c *cobra.Command, kinds ...string) (project string, all []gateway.Object) {
	if readEnvironment(c) != nil {
		return "", nil
	}
	flag := func(name string) string { v, _ := c.Flags().GetString(name); return v }
	f := clientFlags{Where: connect.Where{DataDir: flag("data-dir"), Server: flag("server"), Context: flag("context")}, project: flag("project"), output: "text"}
	if p, err := connect.Project(f.Where); err == nil && p != "" && !c.Flags().Changed("project") {
		f.project = p
	}
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	ctx, conn, err := f.dial(ctx)
	if err != nil {
		return "", nil
	}
	defer conn.Close()
	all, err = objects(ctx, conn, kinds...)
	if err != nil {
		return "", nil
	}
	return f.project, all
}

// liveNames are the short names of the objects of some kinds in the project.
func liveNames(c *cobra.Command, kinds ...string) []string {
	project, all := liveObjects(c, kinds...)
	var out []string
	for _, o := range all {
		if p, _, id, err := gateway.KindOf(o.GetName()); err == nil && p == project {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// projectNames are the projects that hold something.
func projectNames(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	_, all := liveObjects(c, kinds...)
	found := map[string]bool{}
	for _, o := range all {
		if p, _, _, err := gateway.KindOf(o.GetName()); err == nil {
			found[p] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), cobra.ShellCompDirectiveNoFileComp
}

// contextNames are the contexts of this user.
func contextNames(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	all, err := connect.LoadContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return slices.Sorted(maps.Keys(all.Contexts)), cobra.ShellCompDirectiveNoFileComp
}
