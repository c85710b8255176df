package quarantine

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

// Problems are the resources that are not served as wanted, by their objects.
func (r *Room) Problems() []gateway.Problem {
	all := r.List()
	r.mu.Lock()
	defer r.mu.Unlock()
	snapshot := r.Snapshot()
	var out []gateway.Problem
	for _, e := range all {
		if !r.active(e) {
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

// Standing is a resource that is not served as wanted.
type Standing struct {
	Resource xds.Ref
	// Object is what it was made from, and Detail what a proxy said of it.
	Object, Detail string
	// Good: the last accepted version serves in its place; Revision is its own, 0 when that
	// is not known.
	Good     bool
	Revision int64
}

// Standings are the resources that are not served as wanted.
func (r *Room) Standings() (out []Standing) {
	all := r.List()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range all {
		if r.active(e) {
			out = append(out, Standing{
				Resource: e.ref(), Object: e.object(), Detail: e.Refused[len(e.Refused)-1].Detail, Good: e.Good != nil, Revision: e.GoodRevision,
			})
		}
	}
	return out
}

// message says what is refused, why, and what serves.
func (e *Entry) message() string {
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
func fieldOf(e *Entry, object gateway.Object) string {
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

// shownEntry is one resource in quarantine, as /debug/quarantine tells it.
type shownEntry struct {
	Object   string `json:"object,omitempty"`
	Field    string `json:"field,omitempty"`
	Resource string `json:"resource"`
	View     string `json:"view"`
	// State is "quarantined"; "waiting" when a newer version is being tried; "mixed"
	// when some proxies accept what another refused.
	State    string         `json:"state"`
	Since    time.Time      `json:"since"`
	Serving  bool           `json:"last_good_serves"`
	Revision int64          `json:"last_good_revision,omitempty"`
	Refused  []shownVersion `json:"refused"`
}

type shownVersion struct {
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
	Proxy   string    `json:"proxy"`
	Envoy   string    `json:"envoy,omitempty"`
	Time    time.Time `json:"time"`
}

// line describes an entry. The caller holds mu.
func (r *Room) line(e *Entry) shownEntry {
	l := shownEntry{
		Object: e.object(), Field: fieldOf(e, r.Snapshot().Get(e.object())), Resource: e.ref().String(), View: e.View, State: "waiting",
		Since: e.Since, Serving: e.Good != nil, Revision: e.GoodRevision,
	}
	switch {
	case e.Accepted:
		l.State = "mixed"
	case r.active(e):
		l.State = "quarantined"
	}
	for _, v := range e.Refused {
		l.Refused = append(l.Refused, shownVersion{Version: v.Version, Reason: v.Detail, Proxy: v.Proxy, Envoy: v.Envoy, Time: v.Time})
	}
	return l
}

// Match names entries.
type Match func(*Entry) bool

// Pages adds /debug/quarantine: what is in quarantine, and another try. Before the proxies
// get what a Match names, try tries it, and returns what of it they may have.
func (r *Room) Pages(mux *http.ServeMux, try func(Match) Match) {
	write := func(w http.ResponseWriter, all []*Entry) {
		w.Header().Set("content-type", "application/json")
		enc := json.NewEncoder(w)
		for _, e := range all {
			r.mu.Lock()
			line := r.line(e)
			r.mu.Unlock()
			if enc.Encode(line) != nil {
				return // the client is gone
			}
		}
	}
	mux.HandleFunc("GET /debug/quarantine", func(w http.ResponseWriter, _ *http.Request) { write(w, r.List()) })
	mux.HandleFunc("POST /debug/quarantine/retry", func(w http.ResponseWriter, req *http.Request) {
		name, all := req.FormValue("name"), req.FormValue("all") == "true"
		if (name == "") != all {
			http.Error(w, "say which: name=OBJECT, name=TYPE/RESOURCE, or all=true", http.StatusBadRequest)
			return
		}
		found := r.Retry(try(func(e *Entry) bool { return all || e.named(name) }))
		if len(found) == 0 && !all {
			http.Error(w, fmt.Sprintf("nothing of %q is in quarantine: GET /debug/quarantine lists what is", name), http.StatusNotFound)
			return
		}
		write(w, found)
	})
}

// named reports whether a name, of the object or of the resource, means the entry.
func (e *Entry) named(name string) bool {
	return e.ref().String() == name || e.object() == name || e.object() == "projects/default/"+name
}
