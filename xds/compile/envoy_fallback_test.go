package compile_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds"
)

// says is a route that answers with its name.
func says(name, host string) string {
	return fmt.Sprintf("\n---\nkind: Route\nname: %s\nhostnames: [%q]\nrules: [{name: all, direct_response: {status: 200, body: %s}}]\n", name, host, name)
}

// testFallbackHosts: whatever exact hosts and wildcards a listener has, Envoy finds the
// host that the model finds, in every form in which a client may send its name.
func testFallbackHosts(t *testing.T, r *rig) {
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r.setEager([]int{0, -1}[seed%2])
		label := func() string { return []string{"a", "b", "c-1", "x_y", "0"}[rnd.IntN(5)] }
		name := func() string { // the last label is not a number
			n := label()
			for range rnd.IntN(4) {
				n += "." + label()
			}
			return n + ".t"
		}
		hosts := map[string]string{}
		yaml := strings.Replace(gatewayOn, backendUp, "", 1)
		for i := range 40 {
			host := strings.ReplaceAll(name(), "_", "u") // Host may have it, a host name may not
			if rnd.IntN(3) == 0 {
				host = "*." + host
			}
			if i == 0 && rnd.IntN(2) == 0 {
				host = "*"
			}
			if hosts[host] == "" {
				hosts[host] = fmt.Sprintf("h%d", i)
				yaml += says(hosts[host], host)
			}
		}
		port := r.serve(t, yaml)
		for range 120 {
			host := name()
			sent := host
			if rnd.IntN(3) == 0 {
				sent = strings.ToUpper(host[:1]) + host[1:]
			}
			if rnd.IntN(4) == 0 {
				sent += "."
			}
			if rnd.IntN(4) == 0 {
				sent += fmt.Sprintf(":%d", 1+rnd.IntN(65535))
			}
			want := "404"
			if h := r.snapshot.Host("projects/default/gateways/edge", "http", host); h != nil {
				want = hosts[h.Hostname]
			}
			a := r.do(t, port, "GET", sent+"/")
			got := a.body
			if a.status != 200 {
				got = fmt.Sprint(a.status)
			}
			if got != want {
				t.Errorf("seed %d, Host %s: %s, want %s", seed, sent, got, want)
			}
		}
	}
	r.setEager(0)
}

// without sends Envoy what is compiled, but for scopes whose name gone says it of, and
// returns when it has taken them away.
func (r *rig) without(t *testing.T, gone func(scope string) bool) {
	t.Helper()
	g := r.last.Clone()
	for _, name := range r.last.Names(xds.Scope) {
		if gone(name) {
			g.Delete(xds.Scope, name)
		}
	}
	r.server.Update(r.view.String(), g)
	poll(t, "the scopes to be as wanted", func() bool {
		p := r.server.Proxies()
		return len(p) == 1 && p[0].Resources[xds.Scope] == g.Len(xds.Scope)
	})
}

// testFallbackClosed: a host that is protected is never answered by the public wildcard
// above it once its shard names it, whatever of it has not come or is gone; and a shard
// that is not there refuses, it opens nothing.
func testFallbackClosed(t *testing.T, r *rig) {
	const public = `
---
kind: Route
name: open
hostnames: ["*.x.test"]
rules: [{name: all, direct_response: {status: 200, body: public}}]
`
	const prefix = "default/edge/http/"
	for _, eager := range []int{0, -1} {
		r.setEager(eager)
		port := r.serve(t, gatewayOn+hosts(protected, "p.x.test")+public)
		// The workers of Envoy follow one after the other, so the answer before is one, too.
		check := func(what, host, want string, before ...string) {
			t.Helper()
			for _, form := range []string{host, strings.ToUpper(host), host + ":81", host + "."} {
				poll(t, fmt.Sprintf("%s of %s, eager %d, %s", want, form, eager, what), func() bool {
					a := r.do(t, port, "GET", form+"/must")
					got := a.body
					if a.status != 200 {
						got = fmt.Sprint(a.status)
					}
					if got != want && !slices.Contains(before, got) {
						t.Fatalf("eager %d, %s, Host %s: %s, want %s", eager, what, form, got, want)
					}
					return got == want
				})
			}
		}
		check("all there", "p.x.test", "401")
		check("all there", "q.x.test", "public")
		r.without(t, func(scope string) bool { return scope == prefix+"p.x.test" })
		check("no scope", "p.x.test", "404", "401")
		check("no scope", "q.x.test", "public")
		r.without(t, func(scope string) bool { return strings.Contains(scope, "/#/") })
		check("no shards", "p.x.test", "401", "404")
		check("no shards", "q.x.test", "404", "public")
		r.without(t, func(scope string) bool { return scope == prefix+"*" })
		check("no wildcards", "p.x.test", "401")
		check("no wildcards", "q.x.test", "404", "public")
		r.without(t, func(string) bool { return false })
		check("all there again", "q.x.test", "public", "404")
	}
	r.setEager(0)
}

// testFallbackChanges: while a protected host below a public wildcard comes and goes, each
// request is answered as before a change or as after it, no connection is drained, and the
// other hosts see nothing.
func testFallbackChanges(t *testing.T, r *rig) {
	for _, eager := range []int{0, -1} {
		r.setEager(eager)
		port := envoytest.FreePort(t)
		apply := func(yaml string) {
			r.apply(t, r.objects(t, gatewayOn+says("wide", "*.x.test")+says("any", "*")+says("other", "other.x.test")+yaml, map[string]int{"PORT": port}))
		}
		apply("")
		r.open(t, port)
		before := r.last.Get(xds.Listener, "default/edge/http").Version
		touched := func() (n uint64) {
			for _, name := range []string{"listener_modified", "listener_in_place_updated", "listener_removed"} {
				n += r.envoy.Stat(t, "listener_manager."+name)
			}
			return n
		}
		drained := touched()
		var stop atomic.Bool
		var wg sync.WaitGroup
		for _, c := range []struct {
			host string
			want []string
		}{
			{"p.x.test", []string{"wide", "401"}}, {"P.X.test:81", []string{"wide", "401"}}, {"q.x.test", []string{"wide"}},
			{"other.x.test", []string{"other"}}, {"nobody.test", []string{"any"}},
		} {
			wg.Go(func() {
				for !stop.Load() {
					got := ask(t, port, c.host)
					if !strings.Contains(" "+strings.Join(c.want, " ")+" ", " "+got+" ") {
						t.Errorf("eager %d, %s: %s, want one of %v", eager, c.host, got, c.want)
						return
					}
				}
			})
		}
		for range 6 {
			apply(hosts(protected, "p.x.test"))
			poll(t, "the host in capitals to be protected", func() bool { return ask(t, port, "p.X.test") == "401" })
			apply("")
			apply(says("more", "*.more.test"))
		}
		stop.Store(true)
		wg.Wait()
		if got := r.last.Get(xds.Listener, "default/edge/http").Version; got != before {
			t.Error("the listener changed")
		}
		if n := touched(); n != drained {
			t.Errorf("%d listeners were drained or changed", n-drained)
		}
	}
	r.setEager(0)
}

// ask is the body of an answer, or its status. It may be called by many at once.
func ask(t *testing.T, port int, host string) string {
	req, err := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d/must", port), nil)
	if err != nil {
		return err.Error()
	}
	req.Host, req.Close = host, true
	res, err := http.DefaultClient.Do(req.WithContext(t.Context()))
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	if res.StatusCode != 200 {
		return fmt.Sprint(res.StatusCode)
	}
	return string(body)
}

// testFallbackLimits: a limit holds for every host, whichever way a request comes to it: at
// once, by the fallback, or when the routes of the host were not there yet.
func testFallbackLimits(t *testing.T, r *rig) {
	limited := func(name, host string) string {
		return fmt.Sprintf(`
---
kind: Route
name: %s
hostnames: [%q]
rules:
- {name: all, forward: {backends: [{backend: up}]}, policies: {rate_limit: {limits: [{name: l, requests: 1, window: 60s}]}}}
`, name, host)
	}
	for _, eager := range []int{0, -1} {
		r.setEager(eager)
		port := r.serve(t, gatewayOn+limited("exact", "a.x.test")+limited("cold", "b.x.test")+limited("wild", "*.x.test")+limited("any", "*")+says("free", "free.test"))
		r.limiter.setOver(true)
		for _, host := range []string{"A.x.test", "a.x.test", "a.x.test:81", "b.x.test", "B.x.test", "c.x.test", "C.X.test:1", "d.test", "D.test", "[::1]:80"} {
			if a := r.do(t, port, "GET", host+"/"); a.status != 429 || a.got != nil {
				t.Errorf("eager %d, %s: %d", eager, host, a.status)
			}
		}
		if a := r.do(t, port, "GET", "free.test/"); a.status != 200 {
			t.Errorf("no limit: %d", a.status)
		}
		r.limiter.setOver(false)
		r.limiter.take()
	}
	r.setEager(0)
}
