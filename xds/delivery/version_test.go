package delivery

import (
	"fmt"
	"testing"

	"github.com/penstock-gateway/penstock/xds"
)

// FuzzReadVersion: versions come from clients.
func FuzzReadVersion(f *testing.F) {
	f.Add("")
	f.Add("warm")
	f.Add(partsPrefix)
	f.Add(partsPrefix + "AAAAAAAAAAAAAAAA")
	f.Add(stateVersion([]*xds.Resource{{Name: "a", Version: "1"}}))
	f.Fuzz(func(t *testing.T, s string) {
		if parts, ok := readVersion(s); ok && len(parts) > maxParts || !ok && parts != nil {
			t.Errorf("%d parts, %v", len(parts), ok)
		}
	})
}

// TestStateVersion: a version says what was in a response of few resources, in
// whatever order, and differs for many.
func TestStateVersion(t *testing.T) {
	a, b := &xds.Resource{Name: "a", Version: "1"}, &xds.Resource{Name: "b", Version: "2"}
	v := stateVersion([]*xds.Resource{b, a})
	if v != stateVersion([]*xds.Resource{a, b}) {
		t.Error("the order matters")
	}
	parts, ok := readVersion(v)
	if !ok || len(parts) != 2 || parts[hashOf("a")] != hashOf("1") || parts[hashOf("b")] != hashOf("2") {
		t.Errorf("%v, %v", parts, ok)
	}
	var many []*xds.Resource
	for i := range maxParts + 1 {
		many = append(many, &xds.Resource{Name: fmt.Sprint(i), Version: "1"})
	}
	whole := stateVersion(many)
	if _, ok := readVersion(whole); ok || whole == stateVersion(many[1:]) {
		t.Error("many resources have a version of parts")
	}
	many[3] = &xds.Resource{Name: many[3].Name, Version: "2"}
	if whole == stateVersion(many) {
		t.Error("a change makes no other version")
	}
}

// TestNames: the words of a refusal in several languages.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		detail, name string
		want         bool
	}{
		{`error parsing "ClusterResource" response: resource "b": no such thing`, "b", true},
		{`error parsing "ClusterResource" response: resource "b": no such thing`, "c", false},
		{`[resource index 0: b: INVALID_ARGUMENT: no such thing]`, "b", true},
		{`CDS response Cluster 'b' validation error: no such thing`, "b", true},
		{`something is wrong`, "b", false},
		{``, "", false},
	} {
		if got := names(c.detail, c.name); got != c.want {
			t.Errorf("names(%q, %q) = %v", c.detail, c.name, got)
		}
	}
}
