package control

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

var updateMatrix = flag.Bool("update-matrix", false, "rewrite testdata/matrix.txt")

// otherPort are the services of the xDS port, which have checks of their own.
var otherPort = []protoreflect.Name{"RunnerService", "ProxyJoinService"}

// apiMethods are all methods of the configuration API, from the descriptors.
func apiMethods() []protoreflect.MethodDescriptor {
	var out []protoreflect.MethodDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("penstock.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				if !slices.Contains(otherPort, s.Name()) {
					out = append(out, s.Methods().Get(j))
				}
			}
		}
		return true
	})
	slices.SortFunc(out, func(a, b protoreflect.MethodDescriptor) int {
		return strings.Compare(string(a.FullName()), string(b.FullName()))
	})
	return out
}

// requestFor makes a message that is about an object of a project.
func requestFor(m protoreflect.MethodDescriptor, project string) *dynamicpb.Message {
	kind := strings.TrimSuffix(string(m.Parent().Name()), "Service")
	plural := strings.ToLower(kind[:1]) + kind[1:] + "s"
	if kind == "FunctionOperations" {
		plural = "functions"
	}
	name := "projects/" + project + "/" + plural + "/x"
	if kind == "FunctionVersion" {
		name += ".1"
	}
	if kind == "Access" {
		name = "x"
	}
	r := dynamicpb.NewMessage(m.Input())
	fields := m.Input().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.Name() == "name":
			r.Set(f, protoreflect.ValueOfString(name))
		case f.Name() == "parent":
			r.Set(f, protoreflect.ValueOfString("projects/"+project))
		case f.Name() == "project":
			r.Set(f, protoreflect.ValueOfString(project))
		case f.Name() == "revision" && f.Kind() == protoreflect.Int64Kind:
			r.Set(f, protoreflect.ValueOfInt64(999))
		case f.Message() != nil && !f.IsList() && !f.IsMap() && strings.EqualFold(string(f.Name()), kind):
			o := r.Mutable(f).Message()
			o.Set(o.Descriptor().Fields().ByName("name"), protoreflect.ValueOfString(name))
		}
	}
	return r
}

// rolesOf are the columns of the matrix, with the credential of each.
func rolesOf(t *testing.T, p *plane) map[string]string {
	t.Helper()
	c := pb.NewAccessServiceClient(p.conn)
	out := map[string]string{}
	for _, role := range []string{"viewer", "deployer", "editor", "admin"} {
		for _, project := range []string{"*", "default", "other"} {
			name := strings.NewReplacer("*", "all").Replace(role + "-" + project)
			r, err := c.CreateToken(t.Context(), &pb.CreateTokenRequest{Token: &pb.Token{Name: name, Grants: []*pb.Grant{{Role: role, Project: project}}}})
			if err != nil {
				t.Fatal(err)
			}
			out[name] = r.GetSecret()
		}
	}
	// A token whose only role is gone may do nothing.
	if _, err := c.SetRole(t.Context(), &pb.SetRoleRequest{Role: &pb.Role{Name: "empty"}}); err != nil {
		t.Fatal(err)
	}
	r, err := c.CreateToken(t.Context(), &pb.CreateTokenRequest{Token: &pb.Token{Name: "none", Grants: []*pb.Grant{{Role: "empty", Project: "*"}}}})
	if err != nil {
		t.Fatal(err)
	}
	out["none"] = r.GetSecret()
	return out
}

// TestAccessMatrix: every method with every role, over gRPC and REST, against
// testdata/matrix.txt. A new method without a rule is refused to everybody and fails
// here.
func TestAccessMatrix(t *testing.T) {
	p := start(t, t.TempDir())
	conn, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tokens := rolesOf(t, p)
	columns := slices.Sorted(maps.Keys(tokens))
	var b bytes.Buffer
	fmt.Fprintf(&b, "# method, about an object of the project default: the callers that it is not closed to\n")
	for _, m := range apiMethods() {
		req := requestFor(m, "default")
		method := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
		var allowed []string
		for _, c := range columns {
			ok := may(t, conn, method, req, tokens[c])
			if ok {
				allowed = append(allowed, c)
			}
			if rest, has := overREST(t, p, m, req, tokens[c]); has && rest != ok {
				t.Errorf("%s as %s: %v over gRPC, %v over REST", method, c, ok, rest)
			}
		}
		if len(allowed) == 0 {
			t.Errorf("%s is closed to everybody: it needs a rule in internal/access/rules.go", method)
		}
		fmt.Fprintf(&b, "%s.%s: %s\n", m.Parent().Name(), m.Name(), strings.Join(allowed, " "))
	}
	if *updateMatrix {
		if err := os.WriteFile("testdata/matrix.txt", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/matrix.txt")
	if err != nil {
		t.Fatal(err)
	}
	wantLines := strings.Split(string(want), "\n")
	for i, l := range strings.Split(b.String(), "\n") {
		if i >= len(wantLines) || l != wantLines[i] {
			t.Errorf("line %d is\n  %s\nwant\n  %s\n(-update-matrix rewrites testdata/matrix.txt: read the difference)", i+1, l, wantLines[min(i, len(wantLines)-1)])
		}
	}
}

// may reports whether a call is not refused for lack of a right.
func may(t *testing.T, conn *grpc.ClientConn, method string, req proto.Message, token string) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.PerRPCCredentials(connect.Bearer(token)))
	if err == nil {
		if err = stream.SendMsg(req); err == nil || errors.Is(err, io.EOF) {
			_ = stream.CloseSend()
			err = stream.RecvMsg(&pb.ListProxiesRequest{}) // any message: unknown fields are kept
		}
	}
	if status.Code(err) == codes.Unauthenticated || status.Code(err) == codes.Unimplemented {
		t.Errorf("%s: %v", method, err)
	}
	return status.Code(err) != codes.PermissionDenied
}

var variable = regexp.MustCompile(`\{([a-z_.]+)(=[^}]*)?\}`)

// overREST is may over REST, for methods that have a path.
func overREST(t *testing.T, p *plane, m protoreflect.MethodDescriptor, req *dynamicpb.Message, token string) (ok, has bool) {
	t.Helper()
	rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
	if rule == nil || m.IsStreamingServer() {
		return false, false
	}
	method, path := http.MethodGet, rule.GetGet()
	for verb, pattern := range map[string]string{http.MethodPost: rule.GetPost(), http.MethodPut: rule.GetPut(), http.MethodPatch: rule.GetPatch(), http.MethodDelete: rule.GetDelete()} {
		if pattern != "" {
			method, path = verb, pattern
		}
	}
	path = variable.ReplaceAllStringFunc(path, func(v string) string {
		var at protoreflect.Message = req
		parts := strings.Split(variable.FindStringSubmatch(v)[1], ".")
		for _, part := range parts[:len(parts)-1] {
			at = at.Get(at.Descriptor().Fields().ByName(protoreflect.Name(part))).Message()
		}
		return at.Get(at.Descriptor().Fields().ByName(protoreflect.Name(parts[len(parts)-1]))).String()
	})
	var body io.Reader = http.NoBody
	if rule.GetBody() != "" {
		var content proto.Message = req
		if f := m.Input().Fields().ByName(protoreflect.Name(rule.GetBody())); f != nil {
			content = req.Get(f).Message().Interface()
		}
		b, err := protojson.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.addr.HTTP.String()+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodGet && strings.Contains(path, "access/check") {
		r.URL.RawQuery = "project=default"
	}
	if body != http.NoBody {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusMethodNotAllowed {
		t.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return resp.StatusCode != http.StatusForbidden, true
}

// TestHistoryAccess: the history of an object is shown to who may read the history of its
// project, and the object.
func TestHistoryAccess(t *testing.T) {
	p := start(t, t.TempDir())
	conn, err := grpc.NewClient(p.addr.API.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tokens := rolesOf(t, p)
	for object, want := range map[string]string{
		"projects/default/routes/x":  "admin-all admin-default deployer-all deployer-default editor-all editor-default viewer-all viewer-default",
		"projects/other/routes/x":    "admin-all admin-other deployer-all deployer-other editor-all editor-other viewer-all viewer-other",
		"projects/default/secrets/x": "admin-all admin-default editor-all editor-default",
		"":                           "admin-all deployer-all editor-all viewer-all",
		"projects/*/routes/x":        "admin-all deployer-all editor-all viewer-all", // not a name
	} {
		var allowed []string
		for _, c := range slices.Sorted(maps.Keys(tokens)) {
			if may(t, conn, pb.ConfigService_ListRevisions_FullMethodName, &pb.ListRevisionsRequest{Object: object}, tokens[c]) {
				allowed = append(allowed, c)
			}
		}
		if got := strings.Join(allowed, " "); got != want {
			t.Errorf("the history of %q is shown to\n  %s\nwant\n  %s", object, got, want)
		}
	}
}
