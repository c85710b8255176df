package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

// maxWords is how much of what a proxy said is told: Envoy prints whole messages.
const maxWords = 1000

// problems are the resources that are not served as wanted, by their objects.
func (q *quarantine) problems() []gateway.Problem {
	all := q.list()
	q.mu.Lock()
	defer q.mu.Unlock()
	snapshot := q.core.Snapshot()
	var out []gateway.Problem
	for _, e := range all {
		if !q.active(e) {
			continue
		}
		object := snapshot.Get(e.object())
		p := gateway.Problem{Reason: gateway.ReasonQuarantined, Object: e.object(), Field: fieldOf(e, object), Message: e.message()}
		if object != nil {
			p.Origin = object.GetMetadata().GetOrigin()
		}
		out = append(out, p)
	}
	return out
}

// message says what is refused, why, and what serves.
func (e *refusedResource) message() string {
	last := e.Refused[len(e.Refused)-1]
	words := last.Detail
	if len(words) > maxWords {
		words = strings.ToValidUTF8(words[:maxWords], "") + " …"
	}
	serves := "no version of it was accepted before, so that it is held back"
	switch {
	case e.Good != nil && e.GoodRevision > 0:
		serves = fmt.Sprintf("the version of revision %d is served in its place", e.GoodRevision)
	case e.Good != nil:
		serves = "the last version that was accepted is served in its place"
	}
	return fmt.Sprintf("quarantined: proxy %s refused %s: %s; %s; change it, or try again with: penstock quarantine retry %s",
		last.Proxy, e.ref(), words, serves, e.ref())
}

// envoyFields maps words of Envoy's refusals to fields of the object that the
// resource was made from. The first that fits counts.
var envoyFields = map[xds.Type][]struct{ words, field string }{
	xds.Cluster: {
		{"connecttimeout", "connect_timeout"}, {"connect_timeout", "connect_timeout"},
		{"lb_policy", "load_balancing"}, {"load balancer", "load_balancing"}, {"lbpolicy", "load_balancing"},
		{"http2", "protocol"}, {"httpprotocoloptions", "protocol"},
		{"dns", "dns.hostname"}, {"resolve", "dns.hostname"}, {"hostname", "dns.hostname"},
	},
	xds.Endpoint:        {{"", "static.endpoints"}},
	xds.Secret:          {{"private key", "certificate.private_key"}, {"key", "certificate"}, {"", "certificate"}},
	xds.ExtensionConfig: {{"", "policies.authentication.jwt"}},
}

// fieldOf is the field of an object that a refusal is about; "" when that cannot be
// told.
func fieldOf(e *refusedResource, object gateway.Object) string {
	words := strings.ToLower(e.Refused[len(e.Refused)-1].Detail)
	if gw, ok := object.(*pb.Gateway); ok && e.Type == xds.Listener {
		for i, l := range gw.GetListeners() {
			if strings.HasSuffix(e.Name, "/"+l.GetName()) {
				return fmt.Sprintf("listeners[%d]", i)
			}
		}
	}
	if _, function := object.(*pb.Function); function {
		return ""
	}
	for _, f := range envoyFields[e.Type] {
		if strings.Contains(words, f.words) {
			return f.field
		}
	}
	return ""
}

// quarantineLine is one resource in quarantine, as /debug/quarantine tells it.
type quarantineLine struct {
	Object   string `json:"object,omitempty"`
	Field    string `json:"field,omitempty"`
	Resource string `json:"resource"`
	View     string `json:"view"`
	// State is "quarantined"; "waiting" when a newer version is being tried; "mixed"
	// when some proxies accept what another refused.
	State    string               `json:"state"`
	Since    time.Time            `json:"since"`
	Serving  bool                 `json:"last_good_serves"`
	Revision int64                `json:"last_good_revision,omitempty"`
	Refused  []quarantinedVersion `json:"refused"`
}

type quarantinedVersion struct {
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
	Proxy   string    `json:"proxy"`
	Envoy   string    `json:"envoy,omitempty"`
	Time    time.Time `json:"time"`
}

// line describes an entry. The caller holds mu.
func (q *quarantine) line(e *refusedResource) quarantineLine {
	l := quarantineLine{
		Object: e.object(), Field: fieldOf(e, q.core.Snapshot().Get(e.object())), Resource: e.ref().String(), View: e.View, State: "waiting",
		Since: e.Since, Serving: e.Good != nil, Revision: e.GoodRevision,
	}
	switch {
	case e.Accepted:
		l.State = "mixed"
	case q.active(e):
		l.State = "quarantined"
	}
	for _, v := range e.Refused {
		l.Refused = append(l.Refused, quarantinedVersion{Version: v.Version, Reason: v.Detail, Proxy: v.Proxy, Envoy: v.Envoy, Time: v.Time})
	}
	return l
}

// quarantinePages adds /debug/quarantine: what is in quarantine, and another try.
func (c *Core) quarantinePages(mux *http.ServeMux) {
	write := func(w http.ResponseWriter, all []*refusedResource) {
		w.Header().Set("content-type", "application/json")
		enc := json.NewEncoder(w)
		for _, e := range all {
			c.bad.mu.Lock()
			line := c.bad.line(e)
			c.bad.mu.Unlock()
			if enc.Encode(line) != nil {
				return // the client is gone
			}
		}
	}
	mux.HandleFunc("GET /debug/quarantine", func(w http.ResponseWriter, _ *http.Request) { write(w, c.bad.list()) })
	mux.HandleFunc("POST /debug/quarantine/retry", func(w http.ResponseWriter, r *http.Request) {
		name, all := r.FormValue("name"), r.FormValue("all") == "true"
		if (name == "") != all {
			http.Error(w, "say which: name=OBJECT, name=TYPE/RESOURCE, or all=true", http.StatusBadRequest)
			return
		}
		found := c.bad.retry(c.gate.retry(func(e *refusedResource) bool { return all || e.named(name) }))
		if len(found) == 0 && !all {
			http.Error(w, fmt.Sprintf("nothing of %q is in quarantine: GET /debug/quarantine lists what is", name), http.StatusNotFound)
			return
		}
		write(w, found)
	})
}

// named reports whether a name, of the object or of the resource, means the entry.
func (e *refusedResource) named(name string) bool {
	return e.ref().String() == name || e.object() == name || e.object() == "projects/default/"+name
}
