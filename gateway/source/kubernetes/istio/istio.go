// Package istio translates Istio's Gateway, VirtualService and DestinationRule
// (networking.istio.io) into the model.
//
// Documents are decoded into the types of istio.io/client-go, strictly: a field
// that does not exist is refused, where the API server and the Go types would
// drop it; so is a field that exists and has no translation yet. What is accepted
// means what it means to Istio; README.md has the table.
package istio

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/penstock-gateway/penstock/gateway"
	cors "github.com/penstock-gateway/penstock/gateway/policy/cors/istio"
	"github.com/penstock-gateway/penstock/gateway/source/file/strict"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Group is the API group of the resources that this package reads.
const Group = "networking.istio.io"

// versions hold the same messages: Istio serves one schema under three versions.
var versions = []string{"v1", "v1beta1", "v1alpha3"}

// Kinds are the kinds that are translated.
var Kinds = []string{"Gateway", "VirtualService", "DestinationRule"}

// notYet are kinds of the group that exist and are refused by name.
var notYet = []string{"ServiceEntry", "Sidecar", "WorkloadEntry", "WorkloadGroup", "EnvoyFilter", "ProxyConfig"}

// Owns reports whether documents of an apiVersion are for this package. It also
// claims the other groups of Istio, to refuse them by name.
func Owns(apiVersion string) bool {
	group, _, _ := strings.Cut(apiVersion, "/")
	return group == "istio.io" || strings.HasSuffix(group, ".istio.io")
}

// Options are what a translation needs besides the documents.
type Options struct {
	// Project of the objects that are made.
	Project string
	// Backends of the same load. A DestinationRule changes the one of its host; the
	// messages themselves stay as they are.
	Backends []*pb.Backend
	// Stored looks up Backends that DestinationRules change and that the load does not have,
	// by full name; what is not there it leaves out. It is called once at most. nil: nothing
	// is stored.
	Stored func(names []string) []*pb.Backend
	// Incomplete says that other documents of the load could not be read, so that
	// what seems to be missing is not an error.
	Incomplete bool
}

// Object is a translated object and where its fields were written.
type Object struct {
	gateway.Object
	Places strict.Places
}

// Translate makes Gateways and Routes of documents for which Owns holds, and
// Backends changed by DestinationRules. All problems are returned at once,
// together with the objects of the documents that have none.
func Translate(docs []*strict.Doc, o Options) ([]Object, strict.Errors) {
	t := &translator{options: o, backends: map[string]*backend{}, gateways: map[string]*gatewayResource{}, names: map[string]string{}}
	for _, d := range docs {
		t.decode(d)
	}
	for _, b := range o.Backends {
		t.backends[b.GetName()] = &backend{message: b}
	}
	stored := t.stored()
	var out []Object
	for _, g := range t.ingress {
		out = append(out, t.gateway(g)...)
	}
	for _, r := range t.rules {
		t.destinationRule(r)
	}
	for _, b := range slices.Concat(o.Backends, stored) {
		if m := t.backends[b.GetName()]; m.changed {
			out = append(out, Object{Object: m.message, Places: m.places})
		}
	}
	for _, v := range t.services {
		if r, ok := t.virtualService(v); ok {
			out = append(out, r)
		}
	}
	return out, t.errs
}

// stored adds the Backends that only the store has and rules change.
func (t *translator) stored() []*pb.Backend {
	if t.options.Stored == nil {
		return nil
	}
	var names []string
	for _, r := range t.rules {
		m := serviceRE.FindStringSubmatch(qualify(r.namespace, strings.ToLower(r.Spec.Host)))
		if m == nil {
			continue // refused later
		}
		if name := t.backendName(m[1]); t.backends[name] == nil && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	out := t.options.Stored(names)
	for _, b := range out {
		t.backends[b.GetName()] = &backend{message: b}
	}
	return out
}

// backendName is the full name of a Backend.
func (t *translator) backendName(id string) string {
	return "projects/" + t.options.Project + "/backends/" + id
}

type translator struct {
	options  Options
	ingress  []*gatewayResource
	services []*serviceResource
	rules    []*ruleResource
	// backends by full name; gateways by namespace/name.
	backends map[string]*backend
	gateways map[string]*gatewayResource
	// names is which host a backend id stands for.
	names map[string]string
	errs  strict.Errors
}

// resource is what all decoded documents have.
type resource struct {
	doc       *strict.Doc
	kind      string
	namespace string
	meta      *metav1.ObjectMeta
	places    strict.Places
	// broken is set when the spec had errors, so that no object is made of it.
	broken bool
}

type gatewayResource struct {
	resource
	*networkingv1.Gateway
}

type serviceResource struct {
	resource
	*networkingv1.VirtualService
}

type ruleResource struct {
	resource
	*networkingv1.DestinationRule
}

// decode reads one document and files it by kind.
func (t *translator) decode(d *strict.Doc) {
	fields, errs := d.Fields(d.Root, "")
	t.errs = append(t.errs, errs...)
	byName := map[string]strict.Field{}
	for _, f := range fields {
		byName[f.Name] = f
	}
	kind, ok := t.kind(d, byName)
	if !ok {
		return
	}
	r := resource{doc: d, kind: kind, places: strict.Places{}, broken: len(errs) > 0}
	switch kind {
	case "Gateway":
		g := &gatewayResource{Gateway: &networkingv1.Gateway{}}
		if t.body(&r, fields, &g.ObjectMeta, &g.Spec) {
			g.resource = r
			t.ingress = append(t.ingress, g)
			t.gateways[r.namespace+"/"+g.Name] = g
		}
	case "VirtualService":
		v := &serviceResource{VirtualService: &networkingv1.VirtualService{}}
		if t.body(&r, fields, &v.ObjectMeta, &v.Spec) {
			v.resource = r
			t.services = append(t.services, v)
		}
	case "DestinationRule":
		dr := &ruleResource{DestinationRule: &networkingv1.DestinationRule{}}
		if t.body(&r, fields, &dr.ObjectMeta, &dr.Spec) {
			dr.resource = r
			t.rules = append(t.rules, dr)
		}
	}
}

// kind checks apiVersion and kind.
func (t *translator) kind(d *strict.Doc, fields map[string]strict.Field) (string, bool) {
	refuse := func(at strict.Place, path, hint, format string, args ...any) (string, bool) {
		t.errs = append(t.errs, at.Errorf(path, hint, format, args...))
		return "", false
	}
	version := fields["apiVersion"].Value.Value
	at := d.Place(fields["apiVersion"].Value)
	f, ok := fields["kind"]
	if !ok {
		return refuse(d.Place(d.Root), "kind", "one of "+strings.Join(Kinds, ", "), "the document says no kind")
	}
	kind, bad := d.Text(f.Value, "kind")
	if len(bad) > 0 {
		t.errs = append(t.errs, bad...)
		return "", false
	}
	group, v, _ := strings.Cut(version, "/")
	switch {
	case group != Group:
		return refuse(at, "apiVersion", "", "%s %s is not supported yet", version, kind)
	case !slices.Contains(versions, v):
		return refuse(at, "apiVersion", "one of "+strings.Join(versions, ", "), "%s has no version %q", Group, v)
	case slices.Contains(notYet, kind):
		return refuse(d.Place(f.Value), "kind", "", "%s is not supported yet", kind)
	case !slices.Contains(Kinds, kind):
		return refuse(d.Place(f.Value), "kind", strict.Suggest(kind, Kinds), "unknown kind %q in %s", kind, version)
	}
	return kind, true
}

// body reads metadata and spec. It reports whether the document can be translated.
func (t *translator) body(r *resource, fields []strict.Field, meta *metav1.ObjectMeta, spec proto.Message) bool {
	d := r.doc
	hasSpec := false
	before := len(t.errs)
	for _, f := range fields {
		switch f.Name {
		case "apiVersion", "kind", "status":
			// status is written by the API server.
		case "metadata":
			t.metadata(r, f, meta)
		case "spec":
			hasSpec = true
			places, errs := d.Decode(f.Value, spec, strict.Options{Names: strict.JSONNames, Path: "spec", Refuse: refuse})
			t.errs = append(t.errs, errs...)
			for path, at := range places {
				r.places[path] = at
			}
		default:
			t.errs = append(t.errs, d.Place(f.Key).Errorf(f.Name, strict.Suggest(f.Name, []string{"apiVersion", "kind", "metadata", "spec", "status"}),
				"unknown field %q in %s", f.Name, r.kind))
		}
	}
	r.meta = meta
	if r.namespace = cmp.Or(meta.Namespace, "default"); len(t.errs) == before {
		if meta.Name == "" {
			t.errs = append(t.errs, d.Place(d.Root).Errorf("metadata.name", "", "the %s has no metadata.name", r.kind))
		}
		if !hasSpec {
			t.errs = append(t.errs, d.Place(d.Root).Errorf("spec", "", "the %s has no spec", r.kind))
		}
	}
	return len(t.errs) == before && !r.broken
}

// ignoredMetadata is written by the API server or by tools and says nothing of
// what the object does.
var ignoredMetadata = []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink", "ownerReferences", "finalizers"}

// lastApplied is a copy of the whole object that kubectl keeps.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

var (
	nameRE      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	namespaceRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

func (t *translator) metadata(r *resource, f strict.Field, meta *metav1.ObjectMeta) {
	d := r.doc
	// Labels and annotations are read as those of our own metadata; unknown and
	// server-written fields are sorted out first.
	own := *f.Value
	own.Content = nil
	if f.Value.Kind != yaml.MappingNode {
		t.errs = append(t.errs, d.Place(f.Value).Errorf("metadata", "metadata: {name: …}", "metadata: expected a mapping"))
		return
	}
	fields, errs := d.Fields(f.Value, "metadata")
	t.errs = append(t.errs, errs...)
	for _, m := range fields {
		path := "metadata." + m.Name
		switch {
		case m.Name == "name" || m.Name == "namespace":
			s, bad := d.Text(m.Value, path)
			t.errs = append(t.errs, bad...)
			re := nameRE
			if m.Name == "namespace" {
				re = namespaceRE
				meta.Namespace = s
			} else {
				meta.Name = s
			}
			r.places[path] = d.Place(m.Value)
			if len(bad) == 0 && !re.MatchString(s) {
				t.errs = append(t.errs, d.Place(m.Value).Errorf(path, "lower-case letters, digits and dashes", "%q is not a Kubernetes %s", s, m.Name))
			}
		case m.Name == "labels" || m.Name == "annotations":
			own.Content = append(own.Content, m.Key, m.Value)
		case slices.Contains(ignoredMetadata, m.Name):
		default:
			t.errs = append(t.errs, d.Place(m.Key).Errorf(path, strict.Suggest(m.Name, []string{"name", "namespace", "labels", "annotations"}),
				"unknown field %q in metadata", m.Name))
		}
	}
	md := &pb.Metadata{}
	places, errs := d.Decode(&own, md, strict.Options{Names: strict.JSONNames, Path: "metadata"})
	t.errs = append(t.errs, errs...)
	for path, at := range places {
		r.places[path] = at
	}
	meta.Labels, meta.Annotations = md.GetLabels(), md.GetAnnotations()
}

// model makes the metadata of an object that is made of a resource.
func (r *resource) model() *pb.Metadata {
	md := &pb.Metadata{Labels: r.meta.Labels, Annotations: map[string]string{}}
	for k, v := range r.meta.Annotations {
		if k != lastApplied {
			md.Annotations[k] = v
		}
	}
	md.Origin = &pb.Origin{
		Source: "istio", File: r.doc.Source.Name, Line: int32(r.doc.Root.Line),
		Object: fmt.Sprintf("%s %s/%s", r.kind, r.namespace, r.meta.Name),
	}
	return md
}

// maxID is the longest id of a resource name.
const maxID = 63

// id is the id of what is made of namespace/name: "namespace.name". A namespace
// has no dot, so different resources have different ids. Ids that are too long
// end in a hash.
func id(namespace, name string) string {
	s := namespace + "." + name
	if len(s) <= maxID {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return strings.TrimRight(s[:maxID-9], ".-") + "-" + hex.EncodeToString(sum[:4])
}

// refuse adds an error at a field of a resource.
func (t *translator) refuse(r *resource, path, hint, format string, args ...any) {
	at, _ := r.places.Find(path)
	t.errs = append(t.errs, at.Errorf(path, hint, "%s: "+format, append([]any{path}, args...)...))
}

// refuse answers the strict decoder: fields that have no translation.
func refuse(fd protoreflect.FieldDescriptor) (why, hint string) {
	message := fd.ContainingMessage()
	if fields, known := supported[message.Name()]; known && strings.HasPrefix(string(message.FullName()), "istio.") && !slices.Contains(fields, fd.Name()) {
		return "is not supported yet", hints[string(message.Name())+"."+string(fd.Name())]
	}
	return "", ""
}

// supported are the fields of Istio's messages that are translated. Messages that
// are not named here are reached only through fields that are refused.
var supported = map[protoreflect.Name][]protoreflect.Name{
	"Gateway":           {"servers", "selector"},
	"Server":            {"port", "bind", "hosts", "tls", "name"},
	"Port":              {"number", "protocol", "name"},
	"ServerTLSSettings": {"https_redirect", "mode", "credential_name", "credential_names"},

	"VirtualService":       {"hosts", "gateways", "http"},
	"HTTPRoute":            {"name", "match", "route", "redirect", "direct_response", "rewrite", "timeout", "retries", "headers", "cors_policy"},
	"HTTPMatchRequest":     {"uri", "method", "headers", "without_headers", "query_params", "ignore_uri_case"},
	"HTTPRouteDestination": {"destination", "weight"},
	"Destination":          {"host", "subset", "port"},
	"HTTPRedirect":         {"uri", "authority", "port", "derive_port", "scheme", "redirect_code"},
	"HTTPRewrite":          {"uri", "authority"},
	"HTTPDirectResponse":   {"status", "body"},
	"HTTPBody":             {"string"},
	"CorsPolicy":           cors.Fields,
	"HTTPRetry":            {"attempts", "per_try_timeout", "retry_on"},

	"DestinationRule":        {"host", "traffic_policy", "subsets"},
	"Subset":                 {"name", "labels"},
	"TrafficPolicy":          {"load_balancer", "connection_pool", "tls"},
	"ClientTLSSettings":      {"mode"},
	"LoadBalancerSettings":   {"simple"},
	"ConnectionPoolSettings": {"tcp"},
	"TCPSettings":            {"connect_timeout"},
}

var hints = map[string]string{
	"HTTPMatchRequest.authority":   "name the host in spec.hosts",
	"HTTPMatchRequest.gateways":    "write a VirtualService for each Gateway",
	"HTTPMatchRequest.port":        "write a Gateway for each port",
	"HTTPMatchRequest.name":        "name the route instead",
	"HTTPRouteDestination.headers": "change headers for the whole route",
	"HTTPRoute.delegate":           "write the routes of the delegate here",
	"VirtualService.export_to":     "Penstock has projects, not namespaces: leave it out",
	"DestinationRule.export_to":    "Penstock has projects, not namespaces: leave it out",
}
