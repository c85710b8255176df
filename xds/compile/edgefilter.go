package compile

import (
	"fmt"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	exprv1alpha1 "google.golang.org/genproto/googleapis/api/expr/v1alpha1"

	"github.com/penstock-gateway/penstock/gateway"
)

// The policies of the edge filter; the local replies are mapped by these names.
const (
	badMethod    = "bad-method"
	badHost      = "bad-host"
	longHost     = "long-host"
	badPath      = "bad-path"
	badSemicolon = "bad-semicolon"
	manyHeaders  = "many-headers"
	bigHeaders   = "big-headers"
)

// goodMethod is every method that is served, but for TRACE and CONNECT. Methods
// are case-sensitive (RFC 9110, section 9.1) and HTTP/2 carries them as they are,
// but backends were seen to take "delete" for DELETE: so no rule may see it.
const goodMethod = `[A-Z_-]+`

// edge refuses what Envoy would let pass and backends read differently: a Host that
// is not one canonical host, paths that gateway.PathRefused matches, TRACE and
// CONNECT, methods that are not in capital letters, and too many or too large headers. No route has an entry for it.
func edge(e gateway.Edge) *rbacv3.RBAC {
	f := &rbacv3.RBAC{RulesStatPrefix: "edge", Rules: &rbacconfigv3.RBAC{
		Action: rbacconfigv3.RBAC_DENY,
		Policies: map[string]*rbacconfigv3.Policy{
			badMethod:   rbacPolicy(header(":method", exact("TRACE")), header(":method", exact("CONNECT")), not(header(":method", regex(goodMethod)))),
			badHost:     rbacPolicy(not(goodHost())),
			longHost:    tooLong(),
			badPath:     rbacPolicy(path(regex(gateway.PathRefused))),
			manyHeaders: rbacPolicy(header(headersHeader, exact(tooMany))),
			bigHeaders:  rbacPolicy(header(headersHeader, exact(tooBig))),
		},
	}}
	if !e.KeepSemicolons {
		f.Rules.Policies[badSemicolon] = rbacPolicy(path(contains(";")), path(contains("%3b")), path(contains("%3B")))
	}
	return f
}

// goodHost is a host of one of the forms.
func goodHost() *rbacconfigv3.Permission {
	var forms []*rbacconfigv3.Permission
	for _, f := range gateway.HostForms() {
		var all []*rbacconfigv3.Permission
		for _, p := range f.Match {
			all = append(all, header(":authority", regex(p)))
		}
		for _, p := range f.Not {
			all = append(all, not(header(":authority", regex(p))))
		}
		forms = append(forms, &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_AndRules{AndRules: &rbacconfigv3.Permission_Set{Rules: all}}})
	}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_OrRules{OrRules: &rbacconfigv3.Permission_Set{Rules: forms}}}
}

// tooLong refuses hosts of more than gateway.MaxAuthority bytes. An expression has
// no room to count so far: it only keeps the condition, which costs more, from the
// hosts of most requests.
func tooLong() *rbacconfigv3.Policy {
	const few = 70
	p := rbacPolicy(header(":authority", regex(fmt.Sprintf(`\C{%d}\C*`, few))))
	p.Condition = celCall("_>_", celCall("size", celField("request", "host")), celInt(gateway.MaxAuthority))
	return p
}

// rbacPolicy is for anybody who asks for something that one of the rules matches.
func rbacPolicy(rules ...*rbacconfigv3.Permission) *rbacconfigv3.Policy {
	return &rbacconfigv3.Policy{Permissions: rules, Principals: []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_Any{Any: true}}}}
}

func path(m *matcherv3.StringMatcher) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: m}}}}
}

func not(p *rbacconfigv3.Permission) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_NotRule{NotRule: p}}
}

func header(name string, m *matcherv3.StringMatcher) *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Header{Header: &routev3.HeaderMatcher{
		Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m},
	}}}
}

func exact(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func contains(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: s}}
}

func regex(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: s}}}
}

// RBAC takes CEL conditions as parsed expressions only.

func celCall(function string, args ...*exprv1alpha1.Expr) *exprv1alpha1.Expr {
	return &exprv1alpha1.Expr{ExprKind: &exprv1alpha1.Expr_CallExpr{CallExpr: &exprv1alpha1.Expr_Call{Function: function, Args: args}}}
}

// celField is a field of a variable: request.host.
func celField(variable, field string) *exprv1alpha1.Expr {
	return &exprv1alpha1.Expr{ExprKind: &exprv1alpha1.Expr_SelectExpr{SelectExpr: &exprv1alpha1.Expr_Select{
		Operand: &exprv1alpha1.Expr{ExprKind: &exprv1alpha1.Expr_IdentExpr{IdentExpr: &exprv1alpha1.Expr_Ident{Name: variable}}},
		Field:   field,
	}}}
}

func celInt(n int64) *exprv1alpha1.Expr {
	return &exprv1alpha1.Expr{ExprKind: &exprv1alpha1.Expr_ConstExpr{ConstExpr: &exprv1alpha1.Constant{ConstantKind: &exprv1alpha1.Constant_Int64Value{Int64Value: n}}}}
}
