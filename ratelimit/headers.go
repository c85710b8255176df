package ratelimit

import (
	"strconv"
	"strings"
	"time"
)

// Names of the response headers. RateLimit and RateLimit-Policy are those of
// draft-ietf-httpapi-ratelimit-headers-11, as structured fields (RFC 9651).
const (
	headerPolicy     = "ratelimit-policy"
	headerLimit      = "ratelimit"
	headerRetryAfter = "retry-after"
	// headerDegraded lists the limits that could not be counted, so that their
	// failure policy decided.
	headerDegraded = "x-ratelimit-degraded"
)

// policyField is the value of RateLimit-Policy: what the limits are. The window
// is left out where it is not a whole number of seconds, which the draft cannot say.
// A burst that differs from the quota is a parameter of ours.
func policyField(names []string, requests []Request) string {
	var b strings.Builder
	for i, r := range requests {
		s := r.Spec
		if s.Shadow {
			continue
		}
		item(&b, names[i])
		param(&b, "q", int64(s.Requests))
		if s.Window%time.Second == 0 {
			param(&b, "w", int64(s.Window/time.Second))
		}
		if s.Limit() != s.Requests {
			param(&b, "penstock-burst", int64(s.Limit()))
		}
	}
	return b.String()
}

// limitField is the value of RateLimit: what is left. A limit that could not be
// counted is not in it. The consumer's partition key (pk) is never told.
func limitField(names []string, requests []Request, results []Result) string {
	var b strings.Builder
	for i, r := range results {
		if requests[i].Spec.Shadow || r.Degraded {
			continue
		}
		item(&b, names[i])
		param(&b, "r", int64(r.Remaining))
		param(&b, "t", seconds(r.Effective))
	}
	return b.String()
}

// degradedField lists the names of the limits that were not counted.
func degradedField(names []string, requests []Request, results []Result) string {
	var b strings.Builder
	for i, r := range results {
		if r.Degraded && !requests[i].Spec.Shadow {
			item(&b, names[i])
		}
	}
	return b.String()
}

// retryAfter is the value of Retry-After (RFC 9110, section 10.2.3) of a refused
// request: when all its limits would let it pass. It is not before the end of the
// effective window, as the draft asks (section 6), and at least a second.
func retryAfter(requests []Request, results []Result) int64 {
	wait := time.Second
	for i, r := range results {
		if !r.Allowed && !requests[i].Spec.Shadow {
			wait = max(wait, r.RetryAfter, r.Effective)
		}
	}
	return seconds(wait)
}

// uniqueNames returns the names of the limits. A gateway's limit and a route's may
// have the same name: the second is then called name-2.
func uniqueNames(requests []Request) []string {
	names := make([]string, len(requests))
	for i, r := range requests {
		names[i] = r.Spec.Name
		n := 1
		for j := range i {
			if requests[j].Spec.Name == r.Spec.Name {
				n++
			}
		}
		if n > 1 {
			names[i] += "-" + strconv.Itoa(n)
		}
	}
	return names
}

// seconds rounds up.
func seconds(d time.Duration) int64 {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}

// item begins a list member: a string (RFC 9651, section 4.1.6), which ParseSpec
// made sure is printable ASCII.
func item(b *strings.Builder, name string) {
	if b.Len() > 0 {
		b.WriteString(", ")
	}
	b.WriteByte('"')
	for i := range len(name) {
		if name[i] == '"' || name[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(name[i])
	}
	b.WriteByte('"')
}

func param(b *strings.Builder, key string, value int64) {
	b.WriteByte(';')
	b.WriteString(key)
	b.WriteByte('=')
	var digits [20]byte
	b.Write(strconv.AppendInt(digits[:0], value, 10))
}
