package file

import (
	"bytes"
	"encoding/json"
	"fmt"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
)

// EncodeJSON writes objects as JSON that Decode reads: one object, or a list. What
// Encode says of fields holds here, too; numbers are numbers.
func EncodeJSON(objects []gateway.Object, list bool) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.SequenceNode}
	for _, o := range objects {
		n, err := encode(o)
		if err != nil {
			return nil, err
		}
		root.Content = append(root.Content, n)
	}
	if !list && len(root.Content) == 1 {
		root = root.Content[0]
	}
	return renderJSON(root, true)
}

// MessageYAML writes any message as Encode writes the fields of an object, with those
// of the server, and with enum values as the API has them in JSON.
func MessageYAML(m proto.Message) ([]byte, error) {
	root, err := (&encoder{status: true, fullEnums: true}).message(m.ProtoReflect(), nil)
	if err != nil {
		return nil, err
	}
	return render(root)
}

// MessageJSON is MessageYAML as JSON, in several lines or in one.
func MessageJSON(m proto.Message, indent bool) ([]byte, error) {
	root, err := (&encoder{status: true, fullEnums: true}).message(m.ProtoReflect(), nil)
	if err != nil {
		return nil, err
	}
	return renderJSON(root, indent)
}

// renderJSON writes a node as JSON, its fields in the order that they have.
func renderJSON(root *yaml.Node, indent bool) ([]byte, error) {
	var b bytes.Buffer
	if err := nodeJSON(&b, root); err != nil {
		return nil, err
	}
	if indent {
		var out bytes.Buffer
		if err := json.Indent(&out, b.Bytes(), "", "  "); err != nil {
			return nil, err
		}
		b = out
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func nodeJSON(b *bytes.Buffer, n *yaml.Node) error {
	switch n.Kind {
	case yaml.MappingNode:
		b.WriteByte('{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := scalarJSON(b, n.Content[i].Value); err != nil {
				return err
			}
			b.WriteByte(':')
			if err := nodeJSON(b, n.Content[i+1]); err != nil {
				return err
			}
		}
		b.WriteByte('}')
		return nil
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, c := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := nodeJSON(b, c); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	}
	if n.Tag == "!!str" {
		return scalarJSON(b, n.Value)
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return fmt.Errorf("%q: %w", n.Value, err)
	}
	return scalarJSON(b, v)
}

// scalarJSON writes a value without escapes for HTML.
func scalarJSON(b *bytes.Buffer, v any) error {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the line break that Encode adds
	return nil
}
