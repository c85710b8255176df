// Package support makes the file that an operator sends to whoever helps: what runs, on
// what machine, with which configuration, and nothing that must stay secret. Fields are
// left out unless they are known to be safe; see Redactor.
package support

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway/source/file"
	"github.com/penstock-gateway/penstock/internal/backup"
)

// Part is one file of a bundle, or the reason why it is not there.
type Part struct {
	Name string
	// About says in a few words what it holds.
	About string
	// Missing says why it was left out; "" when it is there.
	Missing string

	text  string
	plain bool // a log or an error, which is looked through for credentials
}

// Bundle collects parts. The zero value is empty.
type Bundle struct {
	Redactor Redactor
	Parts    []Part
}

// Add adds a value as JSON, or why there is none. What looks like a credential in it is
// left out.
func (b *Bundle) Add(name, about string, value any, err error) {
	var text []byte
	if err == nil {
		text, err = json.MarshalIndent(value, "", "  ")
	}
	b.AddText(name, about, string(text)+"\n", err)
}

// AddText adds a text, or why there is none. What looks like a credential in it is left
// out.
func (b *Bundle) AddText(name, about, text string, err error) {
	b.add(Part{Name: name, About: about, text: text, plain: true}, err)
}

// AddMessages adds messages of ours, each a document of YAML in the format of files,
// without the texts that may be secret.
func (b *Bundle) AddMessages(name, about string, messages []proto.Message, err error) {
	var text strings.Builder
	for _, m := range messages {
		if err != nil {
			break // there may be none
		}
		var yaml []byte
		if yaml, err = file.MessageYAML(b.Redactor.Message(m)); err != nil {
			break
		}
		fmt.Fprintf(&text, "---\n%s", yaml)
	}
	b.add(Part{Name: name, About: about, text: text.String()}, err)
}

func (b *Bundle) add(p Part, err error) {
	if err != nil {
		p.Missing, p.text = err.Error(), ""
	}
	b.Parts = append(b.Parts, p)
}

// Write makes the file, which only its owner may read. There must be none of its name.
func (b *Bundle) Write(name string) error {
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("%s exists: name another file", name)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var contents strings.Builder
	for i := range b.Parts {
		p := &b.Parts[i]
		if p.Missing = b.Redactor.Text(p.Missing); p.Missing != "" {
			fmt.Fprintf(&contents, "%s: %s: left out: %s\n", p.Name, p.About, p.Missing)
			continue
		}
		fmt.Fprintf(&contents, "%s: %s\n", p.Name, p.About)
	}
	return backup.WriteFile(name, func(emit backup.Emit) error {
		put := func(name, text string) error {
			return emit("penstock-support/"+name, int64(len(text)), io.Reader(strings.NewReader(text)))
		}
		if err := put("contents.txt", contents.String()); err != nil {
			return err
		}
		for _, p := range b.Parts {
			if p.Missing != "" {
				continue
			}
			text := p.text
			if p.plain {
				text = b.Redactor.Text(text)
			} else {
				text = b.Redactor.Values(text)
			}
			if err := put(p.Name, text); err != nil {
				return err
			}
		}
		return nil
	})
}
