package support

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/backup"
)

// fill gives each text of a message its full name as the value, and names them. Of a
// oneof it sets the member whose turn it is.
func fill(m protoreflect.Message, depth, turn int, seen map[string]bool) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		text := protoreflect.ValueOfString("value of " + strings.TrimPrefix(string(f.FullName()), "penstock.v1."))
		one := f.ContainingOneof()
		switch {
		case one != nil && one.Fields().Get(turn%one.Fields().Len()) != f:
		case f.Message() != nil && !f.IsMap() && (depth == 0 || f.Message().ParentFile().Package() != "penstock.v1"):
		case f.IsMap() && f.MapValue().Kind() == protoreflect.StringKind:
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("key").MapKey(), text)
			seen[text.String()] = true
		case f.IsMap() && f.MapValue().Message() != nil && depth > 0:
			fill(m.Mutable(f).Map().Mutable(protoreflect.ValueOfString("key").MapKey()).Message(), depth-1, turn, seen)
		case f.IsMap():
		case f.Message() != nil && f.IsList():
			fill(m.Mutable(f).List().AppendMutable().Message(), depth-1, turn, seen)
		case f.Message() != nil:
			fill(m.Mutable(f).Message(), depth-1, turn, seen)
		case f.Kind() == protoreflect.StringKind && f.IsList():
			m.Mutable(f).List().Append(text)
			seen[text.String()] = true
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, text)
			seen[text.String()] = true
		case f.Kind() == protoreflect.BytesKind:
			m.Set(f, protoreflect.ValueOfBytes([]byte("value of bytes")))
		}
	}
}

// TestRedactor: of messages in which each text is set only the safe ones are kept, and
// no name in the list of those is wrong.
func TestRedactor(t *testing.T) {
	kept, all := map[string]bool{}, map[string]bool{}
	for _, m := range []proto.Message{
		&pb.Gateway{}, &pb.Route{}, &pb.Backend{}, &pb.Function{}, &pb.FunctionVersion{}, &pb.Consumer{}, &pb.Secret{},
		&pb.GetStatusResponse{}, &pb.ListProxiesResponse{}, &pb.ListRevisionsResponse{}, &pb.DescribeFunctionResponse{},
	} {
		for turn := range 12 {
			proto.Reset(m)
			fill(m.ProtoReflect(), 7, turn, all)
			var r Redactor
			text, err := proto.Marshal(r.Message(m))
			if err != nil {
				t.Fatal(err)
			}
			for name := range all {
				if bytes.Contains(text, []byte(name)) {
					kept[name] = true
				}
			}
			if bytes.Contains(text, []byte("value of bytes")) {
				t.Errorf("%T keeps bytes", m)
			}
		}
	}
	for name := range kept {
		// A longer name holds a shorter one only where both are shown.
		if !shown[strings.TrimPrefix(name, "value of ")] && !byPrefix(name) {
			t.Errorf("kept: %s", name)
		}
	}
	for name := range shown {
		if !all["value of "+name] {
			t.Errorf("%s is not a field of these messages", name)
		}
	}
	for _, name := range []string{
		"Function.env", "Header.value", "ServerContract.command", "ServerContract.build", "StringMatch.exact", "StringMatch.regex", "DirectResponse.body",
		"Secret.data", "Secret.jwks", "CertificateSecret.private_key", "JwtIdentity.subject", "Metadata.annotations", "Condition.message",
		"Instance.message", "FunctionState.trouble", "DescribeFunctionResponse.build_output", "Forward.prefix_rewrite",
	} {
		if !all["value of "+name] || kept["value of "+name] {
			t.Errorf("%s: filled %v, kept %v", name, all["value of "+name], kept["value of "+name])
		}
	}
}

func byPrefix(name string) bool {
	for s := range shown {
		if strings.HasPrefix("value of "+s, name) {
			return true
		}
	}
	return false
}

func TestText(t *testing.T) {
	var r Redactor
	r.Message(&pb.Function{Env: map[string]string{"A": "not \"so\" common", "B": "true"}})
	for text, want := range map[string]string{
		`it said not "so" common`:                     "it said (hidden)",
		`{"m":"not \"so\" common"}`:                   `{"m":"(hidden)"}`,
		"it is true":                                  "it is true",
		"join with psj1_abc.def now":                  "join with (hidden) now",
		"Authorization: Bearer abcdefgh":              "Authorization: (hidden)",
		`"header":"Bearer abcdefgh"`:                  `"header":"(hidden)"`,
		"GET /x?api_key=12345&y=1":                    "GET /x?api_key=(hidden)&y=1",
		"redis://:pass@host:1":                        "redis(hidden)host:1",
		"postgres://u:p@host/db":                      "postgres(hidden)host/db",
		"--password=hunter2 x":                        "--password=(hidden) x",
		"a eyJhbGciOiJI.eyJzdWIi.sig b":               "a (hidden) b",
		"key AKIAABCDEFGHIJKLMNOP":                    "key (hidden)",
		"connect 127.0.0.1:80 http://host:8080/path@": "connect 127.0.0.1:80 http://host:8080/path@",
	} {
		if got := r.Text(text); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "up.log")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`of a line cut off"}
{"level":"INFO","service":"runner","msg":"printed by it","function":"f","stream":"stdout"}
{"level":"DEBUG","service":"envoy","msg":"authorization: x"}
{"level":"WARN","service":"runner","msg":"instance ended","function":"f","reason":"its last lines"}
{"level":"WARN","service":"control","msg":"kept","error":"why"}
`)
	text, counted, err := Log(file)
	if err != nil || counted != 1 || strings.Count(string(text), "\n") != 2 || strings.Contains(string(text), "last lines") ||
		strings.Contains(string(text), "printed") || strings.Contains(string(text), "authorization") || !strings.Contains(string(text), "why") {
		t.Errorf("%s %d %v", text, counted, err)
	}
	write("12:00 control started\n")
	if text, _, err := Log(file); !errors.Is(err, ErrTextLog) || len(text) > 0 {
		t.Errorf("a log of text: %s %v", text, err)
	}
	if _, _, err := Log(file + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestBundle(t *testing.T) {
	var b Bundle
	b.AddMessages("f.yaml", "functions", []proto.Message{&pb.Function{Name: "projects/default/functions/f", Env: map[string]string{"A": "canary-value"}}}, nil)
	b.Add("x.json", "facts", map[string]string{"a": "it says canary-value"}, nil)
	b.AddText("log", "lines", "", errors.New("refused with canary-value"))
	name := filepath.Join(t.TempDir(), "b.tar.gz")
	if err := b.Write(name); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if err := b.Write(name); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("over a file: %v", err)
	}
	found := map[string]string{}
	err := backup.EachEntry(name, func(name string, _ int64, r io.Reader) error {
		text, err := io.ReadAll(r)
		if strings.Contains(string(text), "canary-value") {
			t.Errorf("%s: %s", name, text)
		}
		found[name] = string(text)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if !strings.Contains(found["penstock-support/contents.txt"], "log: lines: left out: refused with (hidden)") || found["penstock-support/log"] != "" {
		t.Errorf("%q", found)
	}
}
