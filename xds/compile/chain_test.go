package compile

import (
	"fmt"
	"strings"
	"testing"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// lock is a policy that protects: the filter is RBAC, which denies by default.
func lock(change func(*policy.Filter)) *policy.Policy {
	f := policy.Filter{
		Name: "lock", Stage: policy.Authorize, Mode: policy.Denies, Entry: &rbacv3.RBACPerRoute{}, Off: &rbacv3.RBACPerRoute{},
		Config: func(*policy.Packer) policy.Message { return denyAll("lock") },
		Proof: func(*policy.Route) map[string]*rbacconfigv3.Policy {
			return map[string]*rbacconfigv3.Policy{"locked": rbacPolicy(path(exact("/")))}
		},
	}
	if change != nil {
		change(&f)
	}
	return &policy.Policy{Model: headersModel, Filters: []policy.Filter{f}}
}

var headersModel = &gateway.Policy[*pb.HeadersPolicy]{Name: "headers", Merge: gateway.Union}

// TestBadFilters: a list with a filter that would not protect, that Envoy would ignore, or
// that would be skipped, does not start.
func TestBadFilters(t *testing.T) {
	for want, change := range map[string]func(*policy.Filter){
		"leaves no Proof":                    func(f *policy.Filter) { f.Proof = nil },
		"must deny by default":               func(f *policy.Filter) { f.Mode = policy.Off },
		"(Off)":                              func(f *policy.Filter) { f.Off = nil },
		"the type of its entries":            func(f *policy.Filter) { f.Mode, f.Proof, f.Entry = policy.Off, nil, nil },
		"Off of another type":                func(f *policy.Filter) { f.Off = &routev3.FilterConfig{Disabled: true} },
		"behind the guard":                   func(f *policy.Filter) { f.Stage = policy.Limit },
		"no name or no configuration":        func(f *policy.Filter) { f.Config = nil },
		"filter penstock.v1.guard is in the": func(f *policy.Filter) { f.Name = filterGuard },
		"the entries that let everything pa": func(f *policy.Filter) {
			f.Off = &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{Rules: &rbacconfigv3.RBAC{Action: 9}}}
		},
	} {
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			}()
			newTable([]*policy.Policy{lock(change)})
		}()
	}
	newTable([]*policy.Policy{lock(nil)})
}

// TestForgottenEntry: a policy in force that leaves its filter open, or asks the guard for
// no proof, is an error, so that its rule answers 503; without it nothing has to be proved.
func TestForgottenEntry(t *testing.T) {
	force := headersModel.InForce(gateway.Sourced[*pb.HeadersPolicy]{Value: &pb.HeadersPolicy{Request: &pb.HeaderChange{Remove: []string{"a"}}}})
	shut := &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{}}
	for name, c := range map[string]struct {
		in    *gateway.Effective
		sets  bool
		proof bool
		want  string
	}{
		"all":          {force, true, true, ""},
		"no entry":     {force, false, true, "headers is in force, but its filter lock is open"},
		"no proof":     {force, true, false, "is open"},
		"not in force": {&gateway.Effective{}, false, false, ""},
	} {
		p := lock(func(f *policy.Filter) {
			if !c.proof {
				f.Proof = func(*policy.Route) map[string]*rbacconfigv3.Policy { return nil }
			}
		})
		if c.sets {
			p.Route = func(r *policy.Route) error { r.Set(&p.Filters[0], shut); return nil }
		}
		r := &policy.Route{Entry: &gateway.Entry{Policies: c.in}, Project: "p"}
		err := newTable([]*policy.Policy{p}).route(r)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestStages: the chain is ordered by stages, whatever the order of the list.
func TestStages(t *testing.T) {
	early := lock(func(f *policy.Filter) { f.Name, f.Stage = "early", policy.Prepare })
	late := lock(func(f *policy.Filter) { f.Name, f.Stage = "late", policy.Traffic })
	var names []string
	for _, f := range newTable([]*policy.Policy{late, early}).filters {
		names = append(names, f.Name)
	}
	if got := strings.Join(names, " "); got != "penstock.v1.fallback penstock.v1.drop-port early penstock.v1.rbac late penstock.v1.guard" {
		t.Error(got)
	}
}
