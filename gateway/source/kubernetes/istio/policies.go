package istio

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// timeout is the route's timeout; without one Istio switches it off.
func (t *translator) timeout(h *networking.HTTPRoute) *pb.TimeoutPolicy {
	if d := h.GetTimeout(); d != nil {
		return &pb.TimeoutPolicy{Request: d}
	}
	return &pb.TimeoutPolicy{Request: durationpb.New(0)}
}

// defaultAttempts and defaultRetryOn are what Istio does without retries, and
// what it adds to retries without retryOn (pilot …/route/retry/retry.go).
const defaultAttempts = 2

var defaultRetryOn = []pb.RetryOn{
	pb.RetryOn_RETRY_ON_CONNECT_FAILURE, pb.RetryOn_RETRY_ON_REFUSED_STREAM,
	pb.RetryOn_RETRY_ON_GRPC_UNAVAILABLE, pb.RetryOn_RETRY_ON_GRPC_CANCELLED,
}

var retryOn = map[string]pb.RetryOn{
	"connect-failure":      pb.RetryOn_RETRY_ON_CONNECT_FAILURE,
	"refused-stream":       pb.RetryOn_RETRY_ON_REFUSED_STREAM,
	"reset-before-request": pb.RetryOn_RETRY_ON_RESET_BEFORE_REQUEST,
	"reset":                pb.RetryOn_RETRY_ON_RESET,
	"5xx":                  pb.RetryOn_RETRY_ON_5XX,
	"gateway-error":        pb.RetryOn_RETRY_ON_GATEWAY_ERROR,
	"retriable-4xx":        pb.RetryOn_RETRY_ON_RETRIABLE_4XX,
	"unavailable":          pb.RetryOn_RETRY_ON_GRPC_UNAVAILABLE,
	"cancelled":            pb.RetryOn_RETRY_ON_GRPC_CANCELLED,
	"deadline-exceeded":    pb.RetryOn_RETRY_ON_GRPC_DEADLINE_EXCEEDED,
	"internal":             pb.RetryOn_RETRY_ON_GRPC_INTERNAL,
	"resource-exhausted":   pb.RetryOn_RETRY_ON_GRPC_RESOURCE_EXHAUSTED,
}

// retryOnNothing are conditions that change nothing here: codes and headers that nobody
// names, and a transport that no backend speaks.
var retryOnNothing = []string{"retriable-status-codes", "retriable-headers", "http3-post-connect-failure"}

// retry translates retries. Istio does not tell methods apart, so both groups get
// the same rule.
func (t *translator) retry(v *serviceResource, from string, h *networking.HTTPRoute) *pb.RetryPolicy {
	path, r := from+".retries", h.GetRetries()
	rule := &pb.RetryRule{Attempts: proto.Uint32(defaultAttempts), On: defaultRetryOn}
	switch {
	case r == nil:
	case r.GetAttempts() < 0:
		t.refuse(&v.resource, path+".attempts", "0 switches retries off", "is %d", r.GetAttempts())
	case r.GetAttempts() == 0:
		// Also when attempts was left out.
		rule = &pb.RetryRule{Attempts: proto.Uint32(0)}
		for _, field := range []string{"perTryTimeout", "retryOn"} {
			if _, ok := v.places[path+"."+field]; ok {
				t.refuse(&v.resource, path+"."+field, "set attempts", "has no effect: retries without attempts are switched off")
			}
		}
	default:
		rule.Attempts, rule.PerTryTimeout = proto.Uint32(uint32(r.GetAttempts())), r.GetPerTryTimeout()
		if r.GetRetryOn() != "" {
			rule.On, rule.StatusCodes = t.retryOn(v, path+".retryOn", r.GetRetryOn())
		}
	}
	return &pb.RetryPolicy{Idempotent: rule, Other: proto.Clone(rule).(*pb.RetryRule)}
}

func (t *translator) retryPlaces(p places, from, to string) {
	for _, group := range []string{"idempotent", "other"} {
		base := to + ".policies.retry." + group
		p.set(base+".attempts", from+".retries.attempts")
		p.set(base+".on", from+".retries.retryOn")
		p.set(base+".status_codes", from+".retries.retryOn")
		p.set(base+".per_try_timeout", from+".retries.perTryTimeout")
	}
}

// retryOn reads the comma-separated list. Numbers are status codes, for which
// Istio adds "retriable-status-codes" itself.
func (t *translator) retryOn(v *serviceResource, path, list string) (on []pb.RetryOn, codes []uint32) {
	bare := ""
	for word := range strings.SplitSeq(list, ",") {
		word = strings.TrimSpace(word)
		if n, err := strconv.ParseUint(word, 10, 32); err == nil {
			if n < 400 || n > 599 {
				t.refuse(&v.resource, path, "", "%q is not a status code from 400 to 599", word)
			} else if !slices.Contains(codes, uint32(n)) {
				codes = append(codes, uint32(n))
			}
			continue
		}
		known, ok := retryOn[word]
		switch {
		case word == "":
		case slices.Contains(retryOnNothing, word):
			bare = word
		case !ok:
			t.refuse(&v.resource, path, "supported: "+strings.Join(slices.Sorted(maps.Keys(retryOn)), ", ")+" and status codes", "%q is not supported yet", word)
		case !slices.Contains(on, known):
			on = append(on, known)
		}
	}
	switch {
	case len(on) == 0 && len(codes) > 0:
		on = append(on, pb.RetryOn_RETRY_ON_STATUS_CODES) // an empty list means the default conditions here
	case len(on) == 0 && bare != "": // beside others it changes nothing
		t.refuse(&v.resource, path, "name status codes or conditions", "%s alone retries on nothing", bare)
	}
	return on, codes
}

// headers translates header changes of a route; nil when there are none.
func (t *translator) headers(v *serviceResource, path string, h *networking.Headers) *pb.HeadersPolicy {
	out := &pb.HeadersPolicy{
		Request:  t.operations(v, path+".request", h.GetRequest()),
		Response: t.operations(v, path+".response", h.GetResponse()),
	}
	if out.Request == nil && out.Response == nil {
		return nil
	}
	return out
}

func (t *translator) operations(v *serviceResource, path string, o *networking.Headers_HeaderOperations) *pb.HeaderChange {
	if len(o.GetSet())+len(o.GetAdd())+len(o.GetRemove()) == 0 {
		return nil
	}
	out := &pb.HeaderChange{Set: t.values(v, path+".set", o.GetSet()), Add: t.values(v, path+".add", o.GetAdd())}
	for i, name := range o.GetRemove() {
		if name, ok := t.headerName(v, fmt.Sprintf("%s.remove[%d]", path, i), name); ok {
			out.Remove = append(out.Remove, name)
		}
	}
	return out
}

// values lists header values by name: the order of a mapping has no meaning.
func (t *translator) values(v *serviceResource, path string, values map[string]string) []*pb.Header {
	var out []*pb.Header
	for _, name := range byName(values) {
		at := fmt.Sprintf("%s[%q]", path, name)
		lower, ok := t.headerName(v, at, name)
		if !ok {
			continue
		}
		// Envoy substitutes %REQ(x)% and the like; ours is taken as it is.
		value := strings.ReplaceAll(values[name], "%%", "\x00")
		if strings.Contains(value, "%") {
			t.refuse(&v.resource, at, `a percent sign is written "%%"`, "substitution (%%…%%) is not supported yet")
		}
		if slices.ContainsFunc(out, func(h *pb.Header) bool { return h.GetName() == lower }) {
			t.refuse(&v.resource, at, "", "header %s is there already", lower)
			continue
		}
		out = append(out, &pb.Header{Name: lower, Value: strings.ReplaceAll(value, "\x00", "%")})
	}
	return out
}

func (t *translator) headerName(v *serviceResource, path, name string) (string, bool) {
	lower := strings.ToLower(name)
	switch {
	case lower == "host" || lower == ":authority":
		t.refuse(&v.resource, path, "use rewrite.authority", "%q is not supported yet", name)
	case !tokenRE.MatchString(lower):
		t.refuse(&v.resource, path, "", "%q is not a header name", name)
	default:
		return lower, true
	}
	return "", false
}
