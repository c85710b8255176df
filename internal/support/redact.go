package support

import (
	"encoding/json"
	"regexp"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock-gateway/penstock/gateway"
)

// shown are the texts of messages that are safe to give away, as Message.field. All others
// are left out, so that a field that is added later is hidden until somebody has thought
// about it.
var shown = set(`
	Gateway.name Listener.name Listener.address Listener.hostnames ListenerTls.certificates
	Route.name Route.gateways Route.hostnames RouteRule.name RouteMatch.methods
	PathMatch.exact PathMatch.prefix PathMatch.regex PathMatch.text_prefix
	HeaderMatch.name QueryMatch.name WeightedBackend.backend WeightedBackend.subset
	Redirect.scheme Redirect.host Forward.host_rewrite
	Backend.name Endpoint.address Endpoint.labels DnsTarget.hostname Subset.name Subset.labels
	Function.name Function.source SecretKey.secret SecretKey.key LambdaContract.handler
	FunctionsFrameworkContract.target AzureContract.function Scale.objective Traffic.tag
	Isolation.writable Isolation.network_allow FunctionVersion.name FunctionVersion.function
	Consumer.name Secret.name Header.name HeaderChange.remove RateLimit.name
	JwtAuthentication.issuer JwtAuthentication.audiences JwtAuthentication.jwks_secret JwtAuthentication.consumers
	ClaimHeader.claim ClaimHeader.header JwtIdentity.issuer
	Metadata.uid Metadata.etag Origin.source Origin.file Origin.object Origin.caller
	Condition.type Condition.reason
	GetStatusResponse.runners GetStatusResponse.version ObjectProblem.object ObjectProblem.field ObjectProblem.message
	ProxyProblem.proxy ProxyProblem.state ProxyProblem.type ProxyProblem.resource ProxyProblem.object ProxyProblem.detail
	Proxy.name Proxy.identity Proxy.version Proxy.state Proxy.node
	Instance.function Instance.id Instance.address Instance.isolation
	FunctionState.function FunctionState.activator_address FunctionState.isolation FunctionState.isolation_missing
	FunctionStats.function ScaleDecision.function ScaleDecision.reason ScaleDecision.steps DescribeFunctionResponse.routes
	Revision.root Revision.author Revision.message
`)

func set(words string) map[string]bool {
	out := map[string]bool{}
	for _, w := range strings.Fields(words) {
		out[w] = true
	}
	return out
}

// byFunction are fields of messages about an object whose text comes from the runner when
// the object is a function, and may quote what the function printed.
var byFunction = map[string]protoreflect.Name{"ObjectProblem.message": "object", "ProxyProblem.detail": "object"}

// prose are the fields that people or proxies write freely: they are read as a log is.
var prose = set("Revision.message ObjectProblem.message ProxyProblem.detail")

// Redactor leaves out what must not leave an installation.
type Redactor struct {
	// values were left out of messages. They are left out of texts, too, where an error
	// may quote them.
	values map[string]bool
}

// Message returns a copy of a message of ours without the texts that may be secret. Names
// of variables and headers stay.
func (r *Redactor) Message(m proto.Message) proto.Message {
	m = proto.Clone(m)
	r.message(m.ProtoReflect())
	return m
}

func (r *Redactor) message(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			r.mapping(m, f, v.Map())
		case f.Message() != nil && f.IsList():
			for i := range v.List().Len() {
				r.message(v.List().Get(i).Message())
			}
		case f.Message() != nil:
			r.message(v.Message())
		case f.Kind() == protoreflect.BytesKind:
			m.Clear(f)
		case f.Kind() != protoreflect.StringKind:
		case shows(m, f):
			if prose[fieldName(f)] {
				m.Set(f, protoreflect.ValueOfString(r.Text(v.String())))
			}
		case f.IsList():
			for i := range v.List().Len() {
				v.List().Set(i, r.hide(v.List().Get(i)))
			}
		default:
			m.Set(f, r.hide(v))
		}
		return true
	})
}

func (r *Redactor) mapping(m protoreflect.Message, f protoreflect.FieldDescriptor, values protoreflect.Map) {
	values.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		switch f.MapValue().Kind() {
		case protoreflect.MessageKind:
			r.message(v.Message())
		case protoreflect.StringKind:
			if !shows(m, f) {
				values.Set(k, r.hide(v))
			}
		case protoreflect.BytesKind:
			values.Clear(k)
		}
		return true
	})
}

// fieldName is a field as Message.field.
func fieldName(f protoreflect.FieldDescriptor) string {
	return strings.TrimPrefix(string(f.FullName()), "penstock.v1.")
}

// shows reports whether a text of a message is safe to show.
func shows(m protoreflect.Message, f protoreflect.FieldDescriptor) bool {
	name := fieldName(f)
	if about, ok := byFunction[name]; ok {
		object := m.Get(m.Descriptor().Fields().ByName(about)).String()
		if _, kind, _, err := gateway.KindOf(object); err != nil || kind == gateway.KindFunctions || kind == gateway.KindFunctionVersions {
			return false
		}
	}
	return shown[name]
}

// shortValue is the length below which a value is too common to be looked for in texts,
// like "true" or "8080".
const shortValue = 6

func (r *Redactor) hide(v protoreflect.Value) protoreflect.Value {
	if text := v.String(); len(text) >= shortValue && text != gateway.HiddenValue {
		if r.values == nil {
			r.values = map[string]bool{}
		}
		r.values[text] = true
	}
	return protoreflect.ValueOfString(gateway.HiddenValue)
}

var (
	// tokens are credentials as they are written in commands, headers, URLs and logs.
	tokens = regexp.MustCompile(`(?i)\bps[a-z][0-9]_[^\s"']+|\b(bearer|basic)\s+[^\s"'\\]+|\beyJ[\w-]{8,}[\w.-]*|://[^/\s:@"]*:[^/\s@"]+@` +
		`|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(-----END [A-Z ]*PRIVATE KEY-----)?`)
	// assignments give a value to what is named like a credential, as arguments, queries,
	// JSON and messages of errors do.
	assignments = regexp.MustCompile(`(?i)\b([\w-]*(?:passw(?:or)?d|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|cookie|authorization)["']?\s*[=:]\s*["']?)[^\s"'&;,\\]+`)
)

// Text leaves out of a text what looks like a credential, and every value that was left
// out of a message before.
func (r *Redactor) Text(text string) string {
	return assignments.ReplaceAllString(r.Values(text), "${1}"+gateway.HiddenValue)
}

// Values is Text for what names things like credentials without being one, such as
// configuration: only the forms of credentials are looked for, and values that were left
// out of a message before, also as JSON has them.
func (r *Redactor) Values(text string) string {
	var pairs []string
	for v := range r.values {
		quoted, err := json.Marshal(v)
		pairs = append(pairs, v, gateway.HiddenValue)
		if escaped := strings.Trim(string(quoted), `"`); err == nil && escaped != v {
			pairs = append(pairs, escaped, gateway.HiddenValue)
		}
	}
	text = strings.NewReplacer(pairs...).Replace(text)
	return gateway.HideCredentials(tokens.ReplaceAllString(text, gateway.HiddenValue))
}
