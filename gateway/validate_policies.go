package gateway

import (
	"fmt"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func (c *checker) policies(path string, p *pb.Policies) {
	if p == nil {
		return
	}
	c.headerChange(path+".headers.request", p.GetHeaders().GetRequest())
	c.headerChange(path+".headers.response", p.GetHeaders().GetResponse())
	c.retry(path, p)
	c.jwt(path+".authentication.jwt", p.GetAuthentication().GetJwt())
	c.limits(path+".rate_limit", p.GetRateLimit())
	if p.GetAuthentication() != nil && p.GetAuthentication().GetJwt() == nil {
		c.add(path+".authentication", "asks for nothing; set jwt or take it away")
	}
}

// unchangeable headers belong to the connection or are made by the proxy (RFC 9110,
// section 7.6.1): changing them breaks framing or routing.
var unchangeable = []string{
	"host", "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection",
	"proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade",
}

// reserved prefixes are Envoy's and our own: the proxies act on them.
var reserved = []string{"x-envoy-", "x-penstock-"}

// changeable says why a header may not be changed by a policy; "" when it may.
func changeable(name string) string {
	if strings.HasPrefix(name, ":") {
		return "is a pseudo header; use hostnames, host_rewrite, prefix_rewrite or methods"
	}
	if slices.Contains(unchangeable, name) {
		if name == "host" {
			return "may not be changed here; use forward.host_rewrite"
		}
		return "belongs to the connection and may not be changed"
	}
	for _, r := range reserved {
		if strings.HasPrefix(name, r) {
			return "is reserved: the proxies themselves use headers that start with " + r
		}
	}
	return ""
}

func (c *checker) headerChange(path string, h *pb.HeaderChange) {
	c.headers(path+".set", h.GetSet())
	c.headers(path+".add", h.GetAdd())
	for i, n := range h.GetRemove() {
		c.changed(fmt.Sprintf("%s.remove[%d]", path, i), n)
	}
	c.duplicates("header", namesOf(h.GetSet(), (*pb.Header).GetName), elements(path+".set[%d].name"))
	for i, n := range h.GetRemove() {
		if slices.ContainsFunc(h.GetSet(), func(x *pb.Header) bool { return x.GetName() == n }) {
			c.add(fmt.Sprintf("%s.remove[%d]", path, i), "%q is set by the same policy; take one away (set replaces what was there)", n)
		}
	}
}

func (c *checker) headers(path string, list []*pb.Header) {
	for i, x := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		c.changed(at+".name", x.GetName())
		if strings.ContainsFunc(x.GetValue(), func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) && !c.has(at+".value") {
			c.add(at+".value", "holds a control character, which no header may (RFC 9110, section 5.5)")
		}
	}
}

func (c *checker) changed(field, name string) {
	if c.has(field) {
		return
	}
	if why := changeable(name); why != "" {
		c.add(field, "%q %s", name, why)
	}
}

func (c *checker) retry(path string, p *pb.Policies) {
	request := p.GetTimeout().GetRequest()
	look := func(path string, r *pb.RetryRule) {
		t := r.GetPerTryTimeout()
		if t != nil && request != nil && request.AsDuration() > 0 && t.AsDuration() > request.AsDuration() {
			c.add(path+".per_try_timeout", "%v is longer than timeout.request, %v, whose place it takes for each try; make it shorter", t.AsDuration(), request.AsDuration())
		}
		if r != nil && r.Attempts != nil && r.GetAttempts() == 0 && (len(r.GetOn()) > 0 || len(r.GetStatusCodes()) > 0) {
			c.add(path+".attempts", "is 0, which switches retries off, but on or status_codes say when to retry; take one away")
		}
	}
	look(path+".retry.idempotent", p.GetRetry().GetIdempotent())
	look(path+".retry.other", p.GetRetry().GetOther())
}

func (c *checker) jwt(path string, j *pb.JwtAuthentication) {
	if j == nil {
		return
	}
	if k, ok := j.GetKeys().(*pb.JwtAuthentication_Jwks); ok && !c.has(path+".jwks") {
		c.jwks(path+".jwks", k.Jwks)
	}
	for i, h := range j.GetClaimHeaders() {
		at := fmt.Sprintf("%s.claim_headers[%d]", path, i)
		name := h.GetHeader()
		switch {
		case c.has(at + ".header"):
		case changeable(name) != "":
			c.add(at+".header", "%q %s", name, changeable(name))
		case strings.HasPrefix(name, "x-forwarded-") || name == "x-request-id" || name == "x-trace-id" || name == "x-real-ip":
			c.add(at+".header", "%q is set by the proxies for every request; choose another name", name)
		}
		if !c.has(at + ".claim") {
			c.claim(at+".claim", h.GetClaim())
		}
	}
	c.duplicates("header", namesOf(j.GetClaimHeaders(), (*pb.ClaimHeader).GetHeader), elements(path+".claim_headers[%d].header"))
	project := projectOf(c.object.GetName())
	c.duplicates("consumer", namesOf(j.GetConsumers(), func(n string) string { return Resolve(project, KindConsumers, n) }), elements(path+".consumers[%d]"))
	if j.GetOptional() && len(j.GetConsumers()) > 0 {
		c.add(path+".optional", "lets requests without a token pass, but consumers says who alone may pass; take one away")
	}
	// Envoy takes whole seconds for both.
	if d := j.GetClockSkew(); d.GetNanos() != 0 && !c.has(path+".clock_skew") {
		c.add(path+".clock_skew", "%v is no whole number of seconds; round it", d.AsDuration())
	}
	if d := j.GetMaxLifetime(); d.GetNanos() != 0 && !c.has(path+".max_lifetime") {
		c.add(path+".max_lifetime", "%v is no whole number of seconds; round it", d.AsDuration())
	}
}

// claim checks the name of a claim. One with dots is looked for by an expression, too,
// as the name of a single claim.
func (c *checker) claim(field, claim string) {
	switch {
	case strings.ContainsFunc(claim, func(r rune) bool { return r < ' ' || r == 0x7f }):
		c.add(field, "%q holds a control character", claim)
	case !strings.Contains(claim, "."):
	case strings.ContainsAny(claim, "'\\%()"):
		c.add(field, "%q: the name of a claim with dots must not hold ', \\, %%, ( or )", claim)
	case slices.Contains(strings.Split(claim, "."), "") && !strings.Contains(claim, ":"):
		c.add(field, "%q has an empty part; write a claim, or the claims that lead to it with dots between", claim)
	}
}

func (c *checker) limits(path string, p *pb.RateLimitPolicy) {
	for i, l := range p.GetLimits() {
		at := fmt.Sprintf("%s.limits[%d]", path, i)
		if l.GetBurst() != 0 && l.GetAlgorithm() == pb.RateLimitAlgorithm_RATE_LIMIT_ALGORITHM_FIXED_WINDOW {
			c.add(at+".burst", "is for GCRA only; a fixed window lets all its requests come at once")
		}
	}
	c.duplicates("limit", namesOf(p.GetLimits(), (*pb.RateLimit).GetName), elements(path+".limits[%d].name"))
}
