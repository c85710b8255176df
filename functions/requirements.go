package functions

import (
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxIncluded bounds how many files requirements.txt may include.
const maxIncluded = 32

// requirements are the files that pip reads, by name, and the packages in them. What
// could make pip read a file that is not among them is refused: the layer is shared by
// all whose files are the same, and pip runs as the runner does.
type requirements struct {
	files map[string][]byte
	names []string
}

var (
	requirementName = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*)`)
	separators      = regexp.MustCompile(`[-_.]+`)
	includes        = regexp.MustCompile(`^(?:-r|-c|--requirement|--constraint)[ =]*(\S+)$`)
	coding          = regexp.MustCompile(`coding[:=]\s*([-\w.]+)`)
)

var (
	errFolder = errors.New("it installs a folder, which only a package index can be the source of here: vendor it (pip install --target . …) and set dependencies: NONE")
	errHidden = errors.New("options that name files (-r, -c, -e, -f) stand on a line of their own here, with one name and no quotes")
)

// read reads a requirements file and those that it includes (pip's Requirements
// File Format).
func (r *requirements) read(src *os.Root, name string) error {
	name = path.Clean(name)
	if _, known := r.files[name]; known {
		return nil
	}
	if len(r.files) >= maxIncluded {
		return fmt.Errorf("requirements.txt includes more than %d files", maxIncluded)
	}
	b, err := readManifest(src, name)
	if err != nil {
		return err
	}
	r.files[name] = b
	lines, err := logicalLines(string(b))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, l := range lines {
		if include := includes.FindStringSubmatch(l.text); include != nil {
			err = r.read(src, path.Join(path.Dir(name), include[1]))
		} else {
			err = checkRequirement(l.text)
		}
		if err != nil {
			return fmt.Errorf("%s, line %d: %.200q: %w", name, l.number, l.text, err)
		}
		if m := requirementName.FindStringSubmatch(l.text); m != nil {
			r.names = append(r.names, strings.ToLower(separators.ReplaceAllString(m[1], "-")))
		}
	}
	return nil
}

// requirementLine is what pip takes for one line, and the number of its first.
type requirementLine struct {
	number int
	text   string
}

// logicalLines are the lines as pip sees them: joined where they end with a backslash,
// without comments. Characters that Python takes for the end of a line and others do
// not are refused, and encodings but UTF-8.
func logicalLines(text string) ([]requirementLine, error) {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(c rune) bool {
		return c < ' ' && c != '\n' && c != '\t' || c == 0x7f || c == 0x85 || c == 0x2028 || c == 0x2029 || c == 0xfeff
	}) {
		return nil, errors.New("it is not UTF-8, or has control characters")
	}
	var out []requirementLine
	joined := false
	for n, line := range strings.Split(text, "\n") {
		comment := strings.HasPrefix(strings.TrimSpace(line), "#")
		if m := coding.FindStringSubmatch(line); comment && n < 2 && m != nil && !strings.EqualFold(m[1], "utf-8") {
			return nil, fmt.Errorf("line %d: its encoding must be UTF-8", n+1)
		}
		if !joined {
			out = append(out, requirementLine{number: n + 1})
		}
		joined = strings.HasSuffix(line, `\`) && !comment // a comment ends what is joined
		if !comment {
			out[len(out)-1].text += strings.Trim(line, `\`)
		}
	}
	kept := out[:0]
	for _, l := range out {
		if at := strings.IndexAny(l.text, "#"); at > 0 && (l.text[at-1] == ' ' || l.text[at-1] == '\t') {
			l.text = l.text[:at]
		}
		if l.text = strings.TrimSpace(l.text); l.text != "" {
			kept = append(kept, l)
		}
	}
	return kept, nil
}

// checkRequirement tells what is wrong with a line that includes nothing.
func checkRequirement(line string) error {
	if strings.Contains(strings.ToLower(line), "file:") {
		return errFolder
	}
	for n, word := range strings.Fields(line) {
		if n == 0 && word[0] != '-' {
			if word[0] == '.' || strings.Contains(word, "/") && !strings.Contains(word, "://") {
				return errFolder
			}
			continue
		}
		// As the shell's rules for quotes, which pip follows, would leave it.
		option, _, _ := strings.Cut(strings.NewReplacer(`"`, "", "'", "", `\`, "").Replace(word), "=")
		switch {
		case n == 0 && (strings.HasPrefix(word, "-e") || isOption(option, "--editable")):
			return errFolder
		case strings.HasPrefix(option, "-") && !strings.HasPrefix(option, "--") && len(option) > 1 && strings.ContainsRune("rcef", rune(option[1])),
			isOption(option, "--requirement"), isOption(option, "--constraint"), isOption(option, "--editable"), isOption(option, "--find-links"):
			return errHidden
		}
	}
	return nil
}

// isOption reports whether a word is an option, or short for it.
func isOption(word, option string) bool { return len(word) > 2 && strings.HasPrefix(option, word) }
