package access

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// rule says what a method of the API demands. A method without one is closed to
// everybody, the owner among them: a new method needs a new line.
type rule struct {
	verb, kind string
	// scope finds the project that a request is about. nil: the right is needed in
	// all projects.
	scope func(proto.Message) string
	// somewhere: the right in any project is enough, and the method itself shows or
	// changes only what the caller may.
	somewhere bool
	// watches: the right to read one of the kinds of a WatchRequest, in any project.
	watches bool
	// anybody: every known caller.
	anybody bool
	// writes: the call is audited although it is allowed.
	writes bool
	// noted: each change that the call makes is noted for its audit record (api.Caller.Changed),
	// so one without a note changed nothing. Without it every allowed call is recorded.
	noted bool
}

// rules are those of the methods that do not follow from a kind of resource.
var rules = map[string]rule{
	// Each object is checked on its own (api.Caller.MayChange).
	pb.ConfigService_Apply_FullMethodName:         {anybody: true, writes: true, noted: true},
	pb.ConfigService_Diff_FullMethodName:          {anybody: true},
	pb.ConfigService_Watch_FullMethodName:         {watches: true, scope: everywhere},
	pb.ConfigService_Rollback_FullMethodName:      {verb: verbRollback, kind: "configuration", somewhere: true, writes: true, noted: true},
	pb.ConfigService_ListRevisions_FullMethodName: {verb: "read", kind: "history", scope: ofObject},
	pb.ConfigService_WaitServing_FullMethodName:   {verb: "read", kind: "status", somewhere: true},
	pb.ProxyService_GetStatus_FullMethodName:      {verb: "read", kind: "status", somewhere: true},
	pb.ProxyService_ListProxies_FullMethodName:    {verb: "read", kind: "proxies", somewhere: true},
	pb.ExplainService_Explain_FullMethodName:      {verb: "read", kind: "routes", scope: explained},

	pb.FunctionOperationsService_UploadPackage_FullMethodName:    {verb: "create", kind: "packages", somewhere: true, writes: true, noted: true},
	pb.FunctionOperationsService_DescribeFunction_FullMethodName: {verb: "read", kind: "functions", scope: named},
	pb.FunctionOperationsService_StreamLogs_FullMethodName:       {verb: "read", kind: "logs", scope: named},
	pb.FunctionOperationsService_InvokeFunction_FullMethodName:   {verb: verbInvoke, kind: "functions", scope: named, writes: true},

	pb.ProxyAdmissionService_CreateJoinToken_FullMethodName: {verb: "create", kind: "join-tokens", scope: ofProject, writes: true},
	pb.ProxyAdmissionService_RevokeProxy_FullMethodName:     {verb: "update", kind: "proxies", writes: true, noted: true},
	pb.ProxyAdmissionService_AllowProxy_FullMethodName:      {verb: "update", kind: "proxies", writes: true, noted: true},
	pb.ProxyAdmissionService_ListRevocations_FullMethodName: {verb: "read", kind: "proxies"},

	pb.DevTokenService_GetDevIssuer_FullMethodName: {anybody: true}, // public keys
	pb.DevTokenService_MintDevToken_FullMethodName: {verb: verbMint, kind: "dev-tokens", writes: true},

	pb.BackupService_Backup_FullMethodName:  {verb: "create", kind: "backups", writes: true},
	pb.BackupService_Restore_FullMethodName: {verb: verbRestore, kind: "backups", writes: true},

	pb.AccessService_WhoAmI_FullMethodName:        {anybody: true},
	pb.AccessService_CheckAccess_FullMethodName:   {anybody: true},
	pb.AccessService_ListRoles_FullMethodName:     {anybody: true},
	pb.AccessService_SetRole_FullMethodName:       {verb: "update", kind: "access", writes: true, noted: true},
	pb.AccessService_DeleteRole_FullMethodName:    {verb: "delete", kind: "access", writes: true, noted: true},
	pb.AccessService_ListBindings_FullMethodName:  {verb: "read", kind: "access", somewhere: true},
	pb.AccessService_CreateBinding_FullMethodName: {verb: "create", kind: "access", somewhere: true, writes: true, noted: true},
	pb.AccessService_DeleteBinding_FullMethodName: {verb: "delete", kind: "access", somewhere: true, writes: true, noted: true},
	pb.AccessService_ListTokens_FullMethodName:    {verb: "read", kind: "access", somewhere: true},
	pb.AccessService_CreateToken_FullMethodName:   {verb: "create", kind: "access", somewhere: true, writes: true, noted: true},
	pb.AccessService_RevokeToken_FullMethodName:   {verb: "delete", kind: "access", somewhere: true, writes: true, noted: true},
	pb.AccessService_ListAudit_FullMethodName:     {verb: "read", kind: "audit"},
	pb.AccessService_VerifyAudit_FullMethodName:   {verb: "read", kind: "audit"},

	// The descriptions of the services are public.
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {anybody: true},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {anybody: true},
	"/grpc.health.v1.Health/Watch":                                   {anybody: true},
	"/grpc.health.v1.Health/List":                                    {anybody: true},
}

func init() {
	for _, k := range gateway.Kinds() {
		for i := range k.Service.Methods().Len() {
			m := k.Service.Methods().Get(i)
			if r, ok := standard(string(m.Name()), k.Owner); ok {
				rules[methodName(m)] = r
			}
		}
	}
}

func methodName(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

// standard is the rule of one of the five standard methods of a kind.
func standard(method, kind string) (rule, bool) {
	switch {
	case strings.HasPrefix(method, "Get"):
		return rule{verb: "read", kind: kind, scope: named}, true
	case strings.HasPrefix(method, "List"):
		return rule{verb: "read", kind: kind, scope: parent}, true
	case strings.HasPrefix(method, "Create"):
		return rule{verb: "create", kind: kind, scope: parent, writes: true, noted: true}, true
	case strings.HasPrefix(method, "Update"):
		return rule{verb: "update", kind: kind, scope: updated, writes: true, noted: true}, true
	case strings.HasPrefix(method, "Delete"):
		return rule{verb: "delete", kind: kind, scope: named, writes: true, noted: true}, true
	}
	return rule{}, false
}

// anyProject is the scope of a list over all projects, of which a caller sees those
// that it may.
const anyProject = "-"

func stringField(m proto.Message, name protoreflect.Name) string {
	r := m.ProtoReflect()
	if f := r.Descriptor().Fields().ByName(name); f != nil && f.Kind() == protoreflect.StringKind && !f.IsList() {
		return r.Get(f).String()
	}
	return ""
}

// projectOf is the project of an object; all of them for what is not the name of one.
func projectOf(name string) string {
	project, _, _, err := gateway.KindOf(name)
	if err != nil {
		return AllProjects
	}
	return project
}

func named(m proto.Message) string { return projectOf(stringField(m, "name")) }

func parent(m proto.Message) string {
	project, ok := strings.CutPrefix(stringField(m, "parent"), "projects/")
	if !ok || project == "" || strings.Contains(project, "/") {
		return AllProjects
	}
	return project // "-" is anyProject
}

// updated is the project of the object in an update.
func updated(m proto.Message) string {
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Message() == nil || f.IsList() || f.IsMap() {
			continue
		}
		if o, ok := r.Get(f).Message().Interface().(gateway.Object); ok {
			return projectOf(o.GetName())
		}
	}
	return AllProjects
}

func ofProject(m proto.Message) string {
	if p := stringField(m, "project"); p != "" {
		return p
	}
	return "default"
}

// ofObject is the project of the object that a request is about.
func ofObject(m proto.Message) string { return projectOf(stringField(m, "object")) }

func everywhere(proto.Message) string { return AllProjects }

func explained(m proto.Message) string { return ofProject(m) }

// page is the rule of a path of the HTTP server, beside those of /v1/, which are the
// methods' own.
func page(path string) rule {
	switch path {
	case "/openapi.json", "/debug/":
		return rule{anybody: true}
	case "/metrics":
		return rule{verb: "read", kind: "metrics"}
	case "/debug/quarantine":
		return rule{verb: "read", kind: "quarantine"}
	case "/debug/quarantine/retry":
		return rule{verb: "update", kind: "quarantine", writes: true}
	}
	if strings.HasPrefix(path, "/v1/") {
		return rule{anybody: true}
	}
	// A span may be of any project, so the right is needed in all.
	if strings.HasPrefix(path, "/traces/") {
		return rule{verb: "read", kind: "traces"}
	}
	return rule{verb: "read", kind: "debug", writes: true}
}

// kindOf is the kind of an object as roles name it.
func kindOf(name string) string {
	_, kind, _, err := gateway.KindOf(name)
	if err != nil {
		return ""
	}
	return gateway.KindFor(kind).Owner
}
