package file

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
)

// fill sets a message's fields at random; names and what the server writes stay
// out, because files do not carry them.
func fill(t *rapid.T, m protoreflect.Message, depth int) {
	chosen := map[protoreflect.Name]bool{}
	for i := range m.Descriptor().Fields().Len() {
		fd := m.Descriptor().Fields().Get(i)
		if strict.Behaves(fd, annotations.FieldBehavior_OUTPUT_ONLY) || serverWrites(fd) || (depth == 0 && fd.Name() == "name") {
			continue
		}
		if !rapid.Bool().Draw(t, string(fd.Name())) {
			continue
		}
		if o := fd.ContainingOneof(); o != nil {
			if chosen[o.Name()] {
				continue
			}
			chosen[o.Name()] = true
		}
		label := string(fd.FullName())
		switch {
		case fd.IsMap():
			for range rapid.IntRange(1, 3).Draw(t, label) {
				m.Mutable(fd).Map().Set(protoreflect.ValueOfString(anyText().Draw(t, label)).MapKey(), value(t, fd.MapValue(), m.Mutable(fd).Map().NewValue, depth))
			}
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range rapid.IntRange(1, 3).Draw(t, label) {
				list.Append(value(t, fd, list.NewElement, depth))
			}
		default:
			m.Set(fd, value(t, fd, func() protoreflect.Value { return m.NewField(fd) }, depth))
		}
	}
}

// anyText leans to text that is hard to write in YAML.
func anyText() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.StringMatching(`[a-z0-9-]{0,12}`),
		rapid.String(),
		rapid.SampledFrom([]string{
			"", " ", "\n", "\n\n", "a\n", "\na", " a\n b\n", "a\n\nb", "a: b", "#", "a #b", "- a", "-", "?", ":", "*a", "&a", "!a", "|", ">", "%a", "@a", "`a",
			"~", "null", "true", "no", "on", "1", "0x1", "1e3", ".5", "010", "1_000", "2001-01-01", "<<", "=", "[a]", "{a}", "'", `"`, "---", "...", "---\na", "\t", "a\tb",
			"\r", "a\r\nb", "\u0085", "\u2028", "\ufeff", "\x00", "\x7f", "\x1b", "\U0001F600", "trailing ", "a\n---\nb\n", "a\n  \n",
		}),
	)
}

func value(t *rapid.T, fd protoreflect.FieldDescriptor, fresh func() protoreflect.Value, depth int) protoreflect.Value {
	label := string(fd.FullName()) + " value"
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(anyText().Draw(t, label))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, label))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rapid.IntRange(0, fd.Enum().Values().Len()-1).Draw(t, label)))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, label))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, label))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(rapid.Float64().Draw(t, label))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, label))
	case protoreflect.MessageKind:
		v := fresh()
		if fd.Message().FullName() == "google.protobuf.Duration" {
			d := rapid.Int64().Draw(t, label)
			v.Message().Set(fd.Message().Fields().ByName("seconds"), protoreflect.ValueOfInt64(d/1_000_000_000))
			v.Message().Set(fd.Message().Fields().ByName("nanos"), protoreflect.ValueOfInt32(int32(d%1_000_000_000)))
			return v
		}
		fill(t, v.Message(), depth+1)
		return v
	}
	panic("no generator for " + fd.FullName())
}

// TestRoundTrip: what Encode writes, Decode reads back, and it is written the
// same again.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fd := rapid.SampledFrom(resourceKinds).Draw(t, "kind")
		o := newObject(fd)
		fill(t, o.ProtoReflect(), 0)
		project := rapid.SampledFrom([]string{"default", "p"}).Draw(t, "project")
		name := fmt.Sprintf("projects/%s/%s/%s", project, collection(fd.Message()), rapid.SampledFrom([]string{"a", "a.b-c", "1", "0x1", "true", "1e3"}).Draw(t, "name"))
		o.ProtoReflect().Set(fd.Message().Fields().ByName("name"), protoreflect.ValueOfString(name))
		text, err := Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		back, errs := Decode("x.yaml", text)
		if len(errs) > 0 {
			t.Fatalf("%v\nof\n%s", errs, text)
		}
		if len(back) != 1 {
			t.Fatalf("%d objects of\n%s", len(back), text)
		}
		if diff := cmp.Diff(bare(o), bare(back[0]), protocmp.Transform()); diff != "" {
			t.Fatalf("(-before +after):\n%s\nof\n%s", diff, text)
		}
		again, err := Encode(back[0])
		if err != nil {
			t.Fatal(err)
		}
		if string(again) != string(text) {
			t.Fatalf("written differently:\n%s\n%s", text, again)
		}
	})
}

// bare is an object without what Encode leaves out.
func bare(o gateway.Object) proto.Message {
	c := proto.Clone(o)
	fd := c.ProtoReflect().Descriptor().Fields().ByName("metadata")
	md := c.ProtoReflect().Mutable(fd).Message()
	md.Clear(md.Descriptor().Fields().ByName("origin"))
	md.Clear(md.Descriptor().Fields().ByName("etag"))
	if proto.Size(md.Interface()) == 0 {
		c.ProtoReflect().Clear(fd)
	}
	return c
}

// FuzzDecode: whatever the input, Decode ends, every error has a message and the
// file, and objects without errors can be written and read again.
func FuzzDecode(f *testing.F) {
	for _, archive := range []string{"bad.txtar", "good.txtar"} {
		for _, seed := range archiveFiles(f, archive) {
			f.Add(seed)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, errs := Decode("x.yaml", data)
		for _, e := range errs {
			if e.File != "x.yaml" || e.Message == "" || !strings.Contains(e.Error(), e.Message) {
				t.Fatalf("a poor error: %#v", e)
			}
		}
		for _, o := range objects {
			text, err := Encode(o)
			if err != nil {
				t.Fatalf("%v: %v", o, err)
			}
			back, errs := Decode("y.yaml", text)
			if len(errs) > 0 || len(back) != 1 {
				t.Fatalf("%v\nof\n%s", errs, text)
			}
			if !proto.Equal(bare(o), bare(back[0])) {
				t.Fatalf("read back differently:\n%s", text)
			}
		}
	})
}
