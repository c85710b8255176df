package compression

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// explain tells what is compressed, and which algorithms the client of the request accepts.
func explain(x *gateway.Explanation, v gateway.Value[*pb.CompressionPolicy]) {
	if v.Merged == nil {
		return
	}
	from, p := v.Levels[0].Source, inForce(v)
	if p == nil {
		x.Row("compression", "off here", from)
		return
	}
	types := "text, JSON, XML and the like"
	if len(p.GetContentTypes()) > 0 {
		types = strings.Join(p.GetContentTypes(), ", ")
	}
	names := names(p)
	text := fmt.Sprintf("responses of %d bytes and more, or of no length, are compressed with %s: %s", minLength(p), strings.Join(names, " or "), types)
	accepted := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !accepts(x.Request.Headers["accept-encoding"], n) })
	switch {
	case len(accepted) == 0:
		text += "; this request accepts none of these"
	default:
		text += "; this request accepts " + strings.Join(accepted, " and ")
	}
	x.Row("compression", text, from)
}

// names are the content codings, the preferred one first.
func names(p *pb.CompressionPolicy) []string {
	out := make([]string, 0, len(p.GetAlgorithms()))
	for _, a := range p.GetAlgorithms() {
		out = append(out, codings[a])
	}
	return out
}

// accepts reports whether a client accepts a content coding (RFC 9110, section 12.5.3).
func accepts(lines []string, coding string) bool {
	wildcard := false
	for part := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		name, parameters, _ := strings.Cut(part, ";")
		weight := 1.0
		if q, is := strings.CutPrefix(strings.TrimSpace(parameters), "q="); is {
			weight, _ = strconv.ParseFloat(q, 64)
		}
		switch strings.ToLower(strings.TrimSpace(name)) {
		case coding:
			return weight > 0
		case "*":
			wildcard = weight > 0
		}
	}
	return wildcard
}
