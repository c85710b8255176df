package istio_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
)

var update = flag.Bool("update", false, "write what is got into testdata")

// golden runs f over the files of a txtar archive and compares each with the
// file of the same name plus ".want".
func golden(t *testing.T, archive string, f func(t *testing.T, name string, data []byte) string) {
	t.Helper()
	path := filepath.Join("testdata", archive)
	a, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, file := range a.Files {
		if strings.HasSuffix(file.Name, ".want") {
			want[file.Name] = string(file.Data)
		}
	}
	out := &txtar.Archive{Comment: a.Comment}
	for _, file := range a.Files {
		if strings.HasSuffix(file.Name, ".want") {
			continue
		}
		t.Run(file.Name, func(t *testing.T) {
			got := f(t, file.Name, file.Data)
			out.Files = append(out.Files, file, txtar.File{Name: file.Name + ".want", Data: []byte(got)})
			if *update {
				return
			}
			if diff := cmp.Diff(want[file.Name+".want"], got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if *update {
		if err := os.WriteFile(path, txtar.Format(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGood: what Istio documents become, and that every object is one that the
// model accepts.
func TestGood(t *testing.T) {
	golden(t, "good.txtar", func(t *testing.T, name string, data []byte) string {
		set, errs := file.Options{}.Decode(name, data)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		var b bytes.Buffer
		for _, o := range set.Objects() {
			text, err := file.Encode(o, file.WithStatus())
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString("---\n")
			b.Write(text)
			c := proto.Clone(o).(gateway.Object)
			policies.Model().Normalize(c)
			if bad := set.Locate(policies.Model().Validate(c)); len(bad) > 0 {
				t.Error(bad)
			}
		}
		return b.String()
	})
}

func TestBad(t *testing.T) {
	golden(t, "bad.txtar", func(t *testing.T, name string, data []byte) string {
		_, errs := file.Decode(name, data)
		if len(errs) == 0 {
			t.Error("no error")
		}
		for _, e := range errs {
			if e.File != name || e.Line == 0 || e.Column == 0 || e.Snippet == "" || e.Message == "" {
				t.Errorf("an error without its place: %#v", e)
			}
		}
		return errs.Error() + "\n"
	})
}

const examples = "../../../../examples/istio/"

// TestExamplesAreEqual: the example in both forms gives the same objects but for
// metadata, which says where they were written, and the model accepts them.
func TestExamplesAreEqual(t *testing.T) {
	load := func(name string) map[string]proto.Message {
		set, errs := file.Options{}.Load(examples + name)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		out := map[string]proto.Message{}
		changes := gateway.Changes{}
		for _, o := range set.Objects() {
			policies.Model().Normalize(o)
			if bad := set.Locate(policies.Model().Validate(o)); len(bad) > 0 {
				t.Error(bad)
			}
			changes.Updates = append(changes.Updates, o)
			c := proto.Clone(o).(gateway.Object)
			c.ProtoReflect().Clear(c.ProtoReflect().Descriptor().Fields().ByName("metadata"))
			out[o.GetName()] = c
		}
		snapshot := policies.Model().Build(nil, 1, changes)
		if bad := set.Locate(append(snapshot.Problems(), snapshot.Check()...)); len(bad) > 0 {
			t.Error(bad)
		}
		return out
	}
	ours, istios := load("penstock.yaml"), load("istio.yaml")
	if len(ours) == 0 {
		t.Fatal("no objects")
	}
	if diff := cmp.Diff(ours, istios, protocmp.Transform()); diff != "" {
		t.Errorf("(-penstock.yaml +istio.yaml):\n%s", diff)
	}
}

// TestLocate: problems that the model finds in a translated object are shown in
// the Istio document.
func TestLocate(t *testing.T) {
	set, errs := file.Options{}.Decode("a.yaml", []byte(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a.example.com]
  gateways: [edge]
  http:
  - directResponse: {status: 200}
  - match:
    - uri: {exact: /}
      headers: {x-a: {exact: b}}
    route:
    - destination: {host: a}
    - destination: {host: b}
      weight: 3
    timeout: 5s
    retries: {attempts: 3}
    headers: {request: {set: {x: y}}}
`))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for field, line := range map[string]int{
		"":                                         1,
		"name":                                     3,
		"hostnames[0]":                             5,
		"gateways[0]":                              6,
		"rules":                                    7,
		"rules[0].direct_response.body":            8,
		"rules[1]":                                 9,
		"rules[1].name":                            9,
		"rules[1].matches[0].path.exact":           10,
		"rules[1].matches[0].headers[0].value":     11,
		"rules[1].forward.backends[1].backend":     14,
		"rules[1].forward.backends[1].weight":      15,
		"rules[1].policies.timeout.request":        16,
		"rules[1].policies.retry.other.attempts":   17,
		"rules[1].policies.headers.request.set[0]": 18,
		"metadata.labels[\"x\"]":                   3,
	} {
		got := set.Locate([]gateway.Problem{{Object: "projects/default/routes/default.a", Field: field, Message: "bad"}})
		if len(got) != 1 || got[0].File != "a.yaml" || got[0].Line != line {
			t.Errorf("%q: got %v, want line %d", field, got, line)
		}
	}
}

// FuzzTranslate: whatever the input, translation ends, errors have a place, and
// objects can be written.
func FuzzTranslate(f *testing.F) {
	for _, name := range []string{"good.txtar", "bad.txtar"} {
		a, err := txtar.ParseFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range a.Files {
			if !strings.HasSuffix(file.Name, ".want") {
				f.Add(file.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, errs := file.Decode("x.yaml", data)
		for _, e := range errs {
			if e.File != "x.yaml" || e.Message == "" {
				t.Fatalf("a poor error: %#v", e)
			}
		}
		for _, o := range objects {
			if text, err := file.Encode(o); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
		}
	})
}

// TestStrictTypes: the strict decoder on the types that only Istio's messages
// have: wrappers, 64-bit numbers, floating point, bytes.
func TestStrictTypes(t *testing.T) {
	decode := func(text string, m proto.Message) (proto.Message, string) {
		docs, errs := strict.Parse("a.yaml", []byte(text))
		if len(errs) > 0 || len(docs) != 1 {
			t.Fatalf("%q: %v", text, errs)
		}
		_, errs = docs[0].Decode(docs[0].Root, m, strict.Options{Names: strict.JSONNames})
		return m, errs.Error()
	}
	for _, c := range []struct {
		text string
		want proto.Message
	}{
		{"consecutive5xxErrors: 0", &networking.OutlierDetection{Consecutive_5XxErrors: wrapperspb.UInt32(0)}},
		{"insecureSkipVerify: true", &networking.ClientTLSSettings{InsecureSkipVerify: wrapperspb.Bool(true)}},
		{"minimumPercent: 0.5", &networking.WarmupConfiguration{MinimumPercent: wrapperspb.Double(0.5)}},
		{"value: 5", &networking.Percent{Value: 5}},
		{"bytes: YWI=", &networking.HTTPBody{Specifier: &networking.HTTPBody_Bytes{Bytes: []byte("ab")}}},
		{"minimumRingSize: 18446744073709551615", &networking.LoadBalancerSettings_ConsistentHashLB_RingHash{MinimumRingSize: 1<<64 - 1}},
		{`minimumRingSize: "7"`, &networking.LoadBalancerSettings_ConsistentHashLB_RingHash{MinimumRingSize: 7}},
		{"to: {a: 1}", &networking.LocalityLoadBalancerSetting_Distribute{To: map[string]uint32{"a": 1}}},
	} {
		got, errs := decode(c.text, c.want.ProtoReflect().New().Interface())
		if diff := cmp.Diff(c.want, got, protocmp.Transform()); diff != "" || errs != "" {
			t.Errorf("%q: %s\n%s", c.text, errs, diff)
		}
	}
	for text, c := range map[string]struct {
		m    proto.Message
		want string
	}{
		"consecutive5xxErrors: -1":              {&networking.OutlierDetection{}, "consecutive5xxErrors: expected a whole number from 0 to 4294967295, got the number -1"},
		"insecureSkipVerify: 1":                 {&networking.ClientTLSSettings{}, "expected true or false, got the number 1"},
		"minimumPercent: .nan":                  {&networking.WarmupConfiguration{}, "expected a number"},
		"value: many":                           {&networking.Percent{}, `expected a number, got text "many"`},
		"bytes: '%'":                            {&networking.HTTPBody{}, "expected bytes in base64"},
		"minimumRingSize: 18446744073709551616": {&networking.LoadBalancerSettings_ConsistentHashLB_RingHash{}, "from 0 to 18446744073709551615"},
		"attempts: 2147483648":                  {&networking.HTTPRetry{}, "from -2147483648 to 2147483647"},
	} {
		if _, errs := decode(text, c.m); !strings.Contains(errs, c.want) {
			t.Errorf("%q: got %q, want %q", text, errs, c.want)
		}
	}
}
