package control

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
)

var errInternal = status.Error(codes.Internal, "internal error: the control plane's log has the details")

func stack() string { return string(debug.Stack()) }

// debugPages adds /debug: what each stage of a change holds, and pprof.
func (c *Core) debugPages(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "text/html; charset=utf-8")
		fmt.Fprintf(w, "<!doctype html><title>Penstock</title><h1>Penstock %s</h1><p>revision %d, %d resources</p><ul>", c.version, c.Snapshot().Revision(), c.Snapshot().Len())
		for _, l := range []string{"/debug/dump?stage=model", "/debug/dump?stage=xds&view=default/-", "/debug/dump?stage=proxies", "/debug/dump?stage=instances", "/debug/quarantine", "/debug/pprof/", "/metrics", "/v1/status"} {
			fmt.Fprintf(w, `<li><a href="%s">%s</a>`, l, l)
		}
		fmt.Fprint(w, "</ul>")
	})
	mux.HandleFunc("GET /debug/dump", c.dump)
	c.refused.Pages(mux, c.gate.retry)
	c.shadowPage(mux)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
}

// dump prints the value that one stage of a change holds, one JSON object a line.
func (c *Core) dump(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("content-type", "application/json")
	line := func(m proto.Message) {
		b, err := protojson.Marshal(m)
		if err != nil {
			b = fmt.Appendf(nil, "{%q:%q}", "error", err.Error())
		}
		fmt.Fprintf(w, "%s\n", b)
	}
	switch stage := r.FormValue("stage"); stage {
	case "model":
		annotate := c.Annotator()
		for o := range c.Snapshot().All() {
			line(gateway.ToResource(annotate(o)))
		}
	case "xds":
		g, err := c.generation(r.FormValue("view"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for _, t := range g.Types() {
			for _, name := range g.Names(t) {
				if t == xds.Secret {
					fmt.Fprintf(w, "{%q:%q,%q:%q}\n", "name", name, "secret", "(hidden)")
					continue
				}
				line(g.Get(t, name).Body)
			}
		}
	case "proxies":
		for _, p := range c.Proxies() {
			line(p)
		}
	case "instances":
		for _, i := range c.Instances("") {
			line(i)
		}
	default:
		http.Error(w, fmt.Sprintf("stage %q is none of model, xds, proxies, instances", stage), http.StatusBadRequest)
	}
}

// generation compiles what a view holds now.
func (c *Core) generation(name string) (*xds.Generation, error) {
	if name == "" {
		name = compile.View{Project: "default", Gateway: "-"}.String()
	}
	c.compiling.Lock()
	defer c.compiling.Unlock()
	v := c.views[name]
	if v == nil {
		var known []string
		for n := range c.views {
			known = append(known, n)
		}
		slices.Sort(known)
		return nil, fmt.Errorf("view %q is none of %v", name, known)
	}
	g, _ := v.compiler.Compile(c.input(c.Snapshot(), v))
	return g, nil
}
