package strict

import (
	"encoding/base64"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe says what stands in the file, for "expected x, got y".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!null":
			return "nothing"
		case "!!bool":
			return n.Value
		case "!!int", "!!float":
			return "the number " + clip(n.Value)
		}
		return "text " + strconv.Quote(clip(n.Value))
	}
	return "something else"
}

func clip(s string) string {
	if utf8.RuneCountInString(s) <= 40 {
		return s
	}
	return string([]rune(s)[:39]) + "…"
}

// isText reports whether a scalar is text. A plain date is: only YAML 1.1 made it
// something else.
func isText(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!str" || n.ShortTag() == "!!timestamp")
}

func (d *decoder) text(n *yaml.Node, path string) (string, bool) {
	if isText(n) {
		return n.Value, true
	}
	hint := ""
	if n.Kind == yaml.ScalarNode && !isNull(n) && !d.hidden {
		hint = fmt.Sprintf("write %q with the quotes", n.Value)
	}
	d.wrong(n, path, hint, "text")
	return "", false
}

func (d *decoder) scalar(n *yaml.Node, fd protoreflect.FieldDescriptor, path string) (protoreflect.Value, bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		s, ok := d.text(n, path)
		return protoreflect.ValueOfString(s), ok
	case protoreflect.BoolKind:
		b, ok := d.boolean(n, path)
		return protoreflect.ValueOfBool(b), ok
	case protoreflect.EnumKind:
		return d.enum(n, fd.Enum(), path)
	case protoreflect.BytesKind:
		s, ok := d.text(n, path)
		if !ok {
			return protoreflect.Value{}, false
		}
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			d.wrong(n, path, "", "bytes in base64")
			return protoreflect.Value{}, false
		}
		return protoreflect.ValueOfBytes(b), true
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		f, ok := d.float(n, path)
		if fd.Kind() == protoreflect.FloatKind {
			return protoreflect.ValueOfFloat32(float32(f)), ok
		}
		return protoreflect.ValueOfFloat64(f), ok
	}
	return d.integer(n, fd.Kind(), path)
}

func (d *decoder) boolean(n *yaml.Node, path string) (value, ok bool) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!bool" {
		switch n.Value {
		case "true":
			return true, true
		case "false":
			return false, true
		}
	}
	d.wrong(n, path, "", "true or false")
	return false, false
}

// decimal is what a number may look like: YAML would read 0777 as octal 511.
var decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

func (d *decoder) integer(n *yaml.Node, kind protoreflect.Kind, path string) (v protoreflect.Value, ok bool) {
	bits, signed := 64, true
	switch kind {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		bits = 32
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		bits, signed = 32, false
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		signed = false
	}
	low, high := "0", strconv.FormatUint(math.MaxUint64>>(64-bits), 10)
	if signed {
		low, high = strconv.FormatInt(math.MinInt64>>(64-bits), 10), strconv.FormatInt(math.MaxInt64>>(64-bits), 10)
	}
	// JSON of protobuf writes 64-bit numbers in quotes.
	if n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!int" || (bits == 64 && isText(n))) && decimal.MatchString(n.Value) {
		i, errSigned := strconv.ParseInt(n.Value, 10, bits)
		u, errUnsigned := strconv.ParseUint(n.Value, 10, bits)
		switch {
		case signed && errSigned == nil && bits == 32:
			return protoreflect.ValueOfInt32(int32(i)), true
		case signed && errSigned == nil:
			return protoreflect.ValueOfInt64(i), true
		case !signed && errUnsigned == nil && bits == 32:
			return protoreflect.ValueOfUint32(uint32(u)), true
		case !signed && errUnsigned == nil:
			return protoreflect.ValueOfUint64(u), true
		}
	}
	hint := ""
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!int" && !decimal.MatchString(n.Value) {
		hint = "write it in decimal, without leading zeros"
	} else if isText(n) && decimal.MatchString(n.Value) {
		hint = "take the quotes away"
	}
	d.wrong(n, path, hint, fmt.Sprintf("a whole number from %s to %s", low, high))
	return protoreflect.Value{}, false
}

func (d *decoder) float(n *yaml.Node, path string) (float64, bool) {
	if n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!int" || n.ShortTag() == "!!float") {
		f, err := strconv.ParseFloat(n.Value, 64)
		if err == nil && !math.IsNaN(f) && !math.IsInf(f, 0) {
			return f, true
		}
	}
	d.wrong(n, path, "", "a number")
	return 0, false
}

// EnumNames lists an enum's values in their short form: HTTPS for
// LISTENER_PROTOCOL_HTTPS of ListenerProtocol. The zero value of our own enums
// (…_UNSPECIFIED) is left out: leaving the field out means the same.
func EnumNames(ed protoreflect.EnumDescriptor) []string {
	var out []string
	prefix := enumPrefix(ed)
	for i := range ed.Values().Len() {
		if short := strings.TrimPrefix(string(ed.Values().Get(i).Name()), prefix); short != "UNSPECIFIED" {
			out = append(out, short)
		}
	}
	return out
}

// EnumShort is the short form of one value, as in EnumNames.
func EnumShort(vd protoreflect.EnumValueDescriptor) string {
	ed := vd.Parent().(protoreflect.EnumDescriptor)
	return strings.TrimPrefix(string(vd.Name()), enumPrefix(ed))
}

// enumPrefix is what all values of an enum begin with by the buf style:
// LISTENER_PROTOCOL_ for ListenerProtocol; "" when they do not.
func enumPrefix(ed protoreflect.EnumDescriptor) string {
	var b strings.Builder
	for i, r := range string(ed.Name()) {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	prefix := strings.ToUpper(b.String()) + "_"
	for i := range ed.Values().Len() {
		if !strings.HasPrefix(string(ed.Values().Get(i).Name()), prefix) {
			return ""
		}
	}
	return prefix
}

func (d *decoder) enum(n *yaml.Node, ed protoreflect.EnumDescriptor, path string) (protoreflect.Value, bool) {
	names := EnumNames(ed)
	if !isText(n) {
		d.wrong(n, path, "", "one of "+list(names))
		return protoreflect.Value{}, false
	}
	prefix := enumPrefix(ed)
	for i := range ed.Values().Len() {
		full := string(ed.Values().Get(i).Name())
		if strings.EqualFold(n.Value, full) || strings.EqualFold(n.Value, strings.TrimPrefix(full, prefix)) {
			return protoreflect.ValueOfEnum(ed.Values().Get(i).Number()), true
		}
	}
	hint := Suggest(n.Value, names)
	if !strings.HasPrefix(hint, "did") {
		hint = ""
	}
	d.wrong(n, path, hint, "one of "+list(names))
	return protoreflect.Value{}, false
}

// wellKnown are the messages that are written as one value.
var wellKnown = map[protoreflect.FullName]func(d *decoder, n *yaml.Node, m protoreflect.Message, path string) bool{
	"google.protobuf.Duration":    (*decoder).duration,
	"google.protobuf.Timestamp":   (*decoder).timestamp,
	"google.protobuf.BoolValue":   (*decoder).wrapper,
	"google.protobuf.StringValue": (*decoder).wrapper,
	"google.protobuf.Int32Value":  (*decoder).wrapper,
	"google.protobuf.Int64Value":  (*decoder).wrapper,
	"google.protobuf.UInt32Value": (*decoder).wrapper,
	"google.protobuf.UInt64Value": (*decoder).wrapper,
	"google.protobuf.FloatValue":  (*decoder).wrapper,
	"google.protobuf.DoubleValue": (*decoder).wrapper,
}

func (d *decoder) wrapper(n *yaml.Node, m protoreflect.Message, path string) bool {
	fd := m.Descriptor().Fields().ByNumber(1)
	v, ok := d.scalar(n, fd, path)
	if ok {
		m.Set(fd, v)
	}
	return ok
}

// setTime fills seconds and nanos of a Duration or Timestamp.
func setTime(m protoreflect.Message, seconds int64, nanos int32) {
	fields := m.Descriptor().Fields()
	if seconds != 0 {
		m.Set(fields.ByNumber(1), protoreflect.ValueOfInt64(seconds))
	}
	if nanos != 0 {
		m.Set(fields.ByNumber(2), protoreflect.ValueOfInt32(nanos))
	}
}

// duration takes what Go and protobuf's JSON write: 5s, 1m30s, 250ms, 0.5s.
func (d *decoder) duration(n *yaml.Node, m protoreflect.Message, path string) bool {
	const expected = `a duration such as "5s", "250ms" or "1m30s"`
	if isText(n) {
		if v, err := time.ParseDuration(n.Value); err == nil {
			setTime(m, int64(v/time.Second), int32(v%time.Second))
			return true
		}
	}
	hint := ""
	if n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!int" || isText(n)) && decimal.MatchString(n.Value) {
		hint = fmt.Sprintf("is %ss meant? A duration needs its unit", n.Value)
	}
	d.wrong(n, path, hint, expected)
	return false
}

func (d *decoder) timestamp(n *yaml.Node, m protoreflect.Message, path string) bool {
	if isText(n) {
		if t, err := time.Parse(time.RFC3339Nano, n.Value); err == nil && t.UTC().Year() >= 1 && t.UTC().Year() <= 9999 {
			setTime(m, t.Unix(), int32(t.Nanosecond()))
			return true
		}
	}
	d.wrong(n, path, "", `a time such as "2026-01-31T12:00:00Z" (RFC 3339)`)
	return false
}
