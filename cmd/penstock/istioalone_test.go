package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRuleAlone: files of Istio that refer to a stored Backend are applied, checked and
// compared alone.
func TestRuleAlone(t *testing.T) {
	p := startProxyPlane(t, time.Hour)
	file := func(name, text string) string {
		path := filepath.Join(p.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	rule := func(labels string) string {
		return file("rule.yaml", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: c}\nspec: {host: c, subsets: [{name: one, labels: {version: "+labels+"}}]}\n")
	}
	wantError(t, second(p.run("apply", p.api(), "-f", rule("v1"), "--wait=false")), "nor the store have a", "name: c")
	p.must("apply", p.api(), "-f", file("c.yaml", "kind: Backend\nname: c\nstatic: {endpoints: [{address: 127.0.0.1, port: 1, labels: {version: v1}}, {address: 127.0.0.1, port: 2, labels: {version: v2}}]}\n"), "--wait=false")
	if out := p.must("validate", p.api(), "-f", rule("v1")); !strings.Contains(out, "1 would change") {
		t.Errorf("validate: %s", out)
	}
	if out, err := p.run("diff", p.api(), "-f", rule("v1")); err == nil || !strings.Contains(out, "subsets") {
		t.Errorf("diff: %v %s", err, out)
	}
	p.must("apply", p.api(), "-f", rule("v1"), "--wait=false")
	p.must("apply", p.api(), "-f", file("gw.yaml", "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw}\nspec: {servers: [{port: {number: 9100, name: http, protocol: HTTP}, hosts: [\"*\"]}]}\n"), "--wait=false")
	p.must("apply", p.api(), "-f", file("canary.yaml", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: canary}\nspec:\n  hosts: [canary.example.com]\n  gateways: [gw]\n  http: [{route: [{destination: {host: c, subset: one}}]}]\n"), "--wait=false")
	p.must("apply", p.api(), "-f", rule("v2"), "--wait=false")
	if out := p.must("get", p.api(), "backend", "c", "-o", "yaml"); !strings.Contains(out, "version: v2\n  name: one") && !strings.Contains(out, "name: one\n  labels:\n    version: v2") || strings.Count(out, "name: one") != 1 {
		t.Errorf("the Backend: %s", out)
	}
	if out := p.must("apply", p.api(), "-f", rule("v2"), "--wait=false"); !strings.Contains(out, "no change") {
		t.Errorf("once more: %s", out)
	}
	wantError(t, second(p.run("apply", p.api(), "-f", rule("v2"), "--prune", "shop")), "hold no", "name: c")
	wantError(t, second(p.run("validate", "--offline", "-f", rule("v2"))), "hold no", "name: c")
}

func second(_ string, err error) error { return err }
