package main

import (
	"embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Templates of functions, a folder each. Files end in .tmpl, so that no tool takes
// them for a part of this program; NAME in them, and in their names, is the function's.
//
//go:embed templates
var templates embed.FS

var functionID = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func templateNames() []string {
	entries, err := templates.ReadDir("templates")
	if err != nil {
		panic(err) // embedded
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	slices.Sort(out)
	return out
}

func newFnInitCommand() *cobra.Command {
	var template, dir string
	c := &cobra.Command{
		Use:   "init NAME",
		Short: "Write a function to begin with",
		Long:  "Writes a folder with a handler, as the cloud that it is named after runs it, and " + functionFile + ", which says how\nit is run and which requests it gets.",
		Example: "  penstock fn init hello && penstock fn deploy hello && curl localhost:8080/hello\n" +
			"  penstock fn init greet --template lambda-go",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !functionID.MatchString(args[0]) {
				return fmt.Errorf("%q is not a valid name of a function: a-z, 0-9 and -, at most 63 of them, not - at an end", args[0])
			}
			if dir == "" {
				dir = args[0]
			}
			files, err := writeTemplate(template, args[0], dir)
			if err != nil {
				return err
			}
			for _, f := range files {
				fmt.Fprintf(cmd.OutOrStdout(), "+ %s\n", filepath.Join(dir, f))
			}
			return printNext(cmd.OutOrStdout(), dir)
		},
	}
	c.Flags().StringVarP(&template, "template", "t", "lambda-python", "one of "+strings.Join(templateNames(), ", "))
	c.Flags().StringVar(&dir, "dir", "", "folder to write (default NAME)")
	return c
}

// printNext says what to type after a template was written: each line can be run.
func printNext(w io.Writer, dir string) error {
	d, err := readDeployment(dir, defaultProject, "")
	if err != nil {
		return err
	}
	word := dir
	if strings.ContainsFunc(dir, func(r rune) bool { return !strings.ContainsRune(plainWord, r) }) {
		word = "'" + strings.ReplaceAll(dir, "'", `'\''`) + "'"
	}
	fmt.Fprintln(w, "next:")
	if isFile(filepath.Join(dir, "Makefile")) {
		fmt.Fprintf(w, "  make -C %s\n", word)
	}
	fmt.Fprintf(w, "  penstock fn deploy %s    # or, again at every save: penstock fn dev %s\n", word, word)
	for _, o := range d.objects {
		if r, ok := o.(*pb.Route); ok {
			fmt.Fprintf(w, "  curl localhost:8080%s\n", r.GetRules()[0].GetMatches()[0].GetPath().GetPrefix())
		}
	}
	return nil
}

// plainWord are the characters that a shell takes as they are.
const plainWord = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./_-"

// writeTemplate writes a template into a folder that is not there, or is empty, and
// returns the names of its files.
func writeTemplate(template, name, dir string) ([]string, error) {
	root := path.Join("templates", template)
	if !slices.Contains(templateNames(), template) {
		return nil, fmt.Errorf("--template %q is none of %s", template, strings.Join(templateNames(), ", "))
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty: choose another --dir", dir)
	}
	var out []string
	err := fs.WalkDir(templates, root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := templates.ReadFile(p)
		if err != nil {
			return err
		}
		rel := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(p, root+"/"), ".tmpl"), "NAME", name)
		to := filepath.Join(dir, filepath.FromSlash(rel))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(string(b), "#!") {
			mode = 0o755
		}
		out = append(out, rel)
		return os.WriteFile(to, []byte(strings.ReplaceAll(string(b), "NAME", name)), mode)
	})
	return out, err
}
