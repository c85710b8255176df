package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/penstock-gateway/penstock/internal/supervise"
)

// settingsFile is read from the working directory when it is there.
const settingsFile = "penstock.yaml"

// readSettings gives flags that were not given on the command line the value that
// a settings file has for them. Its keys are the names of the flags. The file is
// strict: an unknown or repeated key or a bad value is an error with its line.
func readSettings(file string, optional bool, cmd *cobra.Command) error {
	b, err := os.ReadFile(file)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--settings: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if len(doc.Content) == 0 {
		return nil // an empty file
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: want entries such as \"gateway-listen: 127.0.0.1:8080\"", file, root.Line)
	}
	var errs []error
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if seen[key.Value] {
			errs = append(errs, fmt.Errorf("%s:%d: %s is there twice", file, key.Line, key.Value))
			continue
		}
		seen[key.Value] = true
		if err := setFlag(cmd, key.Value, value); err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %s: %w", file, key.Line, key.Value, err))
		}
	}
	return errors.Join(errs...)
}

func setFlag(cmd *cobra.Command, name string, value *yaml.Node) error {
	flag := cmd.Flags().Lookup(name)
	if flag == nil || slices.Contains([]string{"settings", "detach", "help"}, name) {
		return errors.New("penstock up has no such setting (they are the flags of `penstock up --help`)")
	}
	values, err := settingValues(name, value)
	if err != nil {
		return err
	}
	// The command line wins. What the file says of the folder of functions belongs
	// to the file's config, not to another one.
	if flag.Changed || (name == "functions-root" && cmd.Flags().Changed("config")) {
		return nil
	}
	for _, v := range values {
		if err := flag.Value.Set(v); err != nil {
			return err
		}
	}
	return nil
}

// settingValues turns a scalar, a list or, for run, a map into flag values.
func settingValues(name string, n *yaml.Node) ([]string, error) {
	scalars := func(n *yaml.Node) ([]string, error) {
		var out []string
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("line %d: want a text", item.Line)
			}
			out = append(out, item.Value)
		}
		return out, nil
	}
	switch {
	case name == "run" && n.Kind == yaml.MappingNode:
		var out []string
		for i := 0; i+1 < len(n.Content); i += 2 {
			command := n.Content[i+1]
			if command.Kind != yaml.SequenceNode {
				return nil, fmt.Errorf("line %d: want a list, [PROGRAM, ARGUMENT, …]", command.Line)
			}
			words, err := scalars(command)
			if err != nil {
				return nil, err
			}
			quoted := make([]string, len(words))
			for j, w := range words {
				quoted[j] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
			}
			out = append(out, n.Content[i].Value+"="+strings.Join(quoted, " "))
		}
		return out, nil
	case name == "run":
		return nil, errors.New("want entries NAME: [PROGRAM, ARGUMENT, …]")
	case n.Kind == yaml.SequenceNode:
		return scalars(n)
	case n.Kind == yaml.ScalarNode:
		return []string{n.Value}, nil
	}
	return nil, errors.New("want a text or a list of texts")
}

var processName = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$`)

// parseRun reads NAME=COMMAND into a process that stands beside ours.
func parseRun(s string) (supervise.Process, error) {
	name, command, ok := strings.Cut(s, "=")
	if !ok || !processName.MatchString(name) {
		return supervise.Process{}, fmt.Errorf("%q is not NAME=COMMAND with a name of lower-case letters, digits and -", s)
	}
	if slices.Contains([]string{"control", "relay", "limiter", "runner", "envoy", "jaeger", "up"}, name) || strings.HasPrefix(name, "limiter-") {
		return supervise.Process{}, fmt.Errorf("%q: %s is the name of a process of Penstock itself", s, name)
	}
	words, err := splitWords(command)
	if err != nil {
		return supervise.Process{}, fmt.Errorf("%q: %w", s, err)
	}
	if len(words) == 0 {
		return supervise.Process{}, fmt.Errorf("%q has no command", s)
	}
	return supervise.Process{Name: name, Command: words[0], Args: words[1:]}, nil
}

// splitWords splits at blanks, with '…', "…" and \ as a shell has them, but
// without anything that a shell would expand.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	in := false // inside a word
	var quote rune
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote is not closed")
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}
