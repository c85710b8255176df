// Package compression says which responses are compressed, and compiles that to Envoy's
// compressor filters.
package compression

import (
	"fmt"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// DefaultMinLength is the shortest content-length that is compressed, in bytes: what a shorter
// one saves fits into the packet that is sent anyway.
const DefaultMinLength = 1024

// defaultTypes are the content types that are compressed by default: text in all its forms,
// but no event streams, whose parts have to go out one by one.
var defaultTypes = []string{
	"text/html", "text/plain", "text/css", "text/csv", "text/javascript", "text/markdown", "text/xml",
	"application/javascript", "application/json", "application/ld+json", "application/problem+json", "application/xhtml+xml",
	"application/xml", "application/manifest+json", "image/svg+xml",
}

// codings are the content codings of the algorithms.
var codings = map[pb.CompressionAlgorithm]string{
	pb.CompressionAlgorithm_COMPRESSION_ALGORITHM_GZIP:   "gzip",
	pb.CompressionAlgorithm_COMPRESSION_ALGORITHM_BROTLI: "br",
	pb.CompressionAlgorithm_COMPRESSION_ALGORITHM_ZSTD:   "zstd",
}

// Policy says which responses are compressed.
var Policy = &gateway.Policy[*pb.CompressionPolicy]{Name: "compression", Merge: gateway.Nearest, Normalize: normalize, Check: check, Warn: warn, Explain: explain}

// inForce is the policy in force; nil for none.
func inForce(v gateway.Value[*pb.CompressionPolicy]) *pb.CompressionPolicy {
	if v.Merged == nil || v.Merged.GetDisabled() {
		return nil
	}
	return v.Merged
}

func minLength(p *pb.CompressionPolicy) uint32 {
	if p.MinLength != nil {
		return p.GetMinLength()
	}
	return DefaultMinLength
}

func contentTypes(p *pb.CompressionPolicy) []string {
	if len(p.GetContentTypes()) > 0 {
		return p.GetContentTypes()
	}
	return defaultTypes
}

func normalize(p *pb.CompressionPolicy) {
	for i, t := range p.GetContentTypes() {
		p.ContentTypes[i] = strings.ToLower(strings.TrimSpace(t))
	}
}

func check(c *gateway.Check, p *pb.CompressionPolicy) {
	says := len(p.GetAlgorithms())+len(p.GetContentTypes()) > 0 || p.MinLength != nil
	switch {
	case p.GetDisabled() && says:
		c.Add("disabled", "switches compression off, but other fields say what is compressed; remove it or them")
	case !p.GetDisabled() && len(p.GetAlgorithms()) == 0 && !c.Has("algorithms"):
		c.Add("algorithms", "is empty; name GZIP, BROTLI or ZSTD, or set disabled to switch off what a gateway or route around it says")
	}
	for i, t := range p.GetContentTypes() {
		field := fmt.Sprintf("content_types[%d]", i)
		switch {
		case c.Has(field):
		case strings.HasPrefix(t, "*"):
			c.Add(field, "%q would compress images and archives, too, which are compressed already; name types, or text/*", t)
		case strings.HasPrefix(t, "application/grpc"):
			c.Add(field, "%q has a compression of its own for each message; leave it out", t)
		}
	}
}

// compressed are families of types whose members are compressed already, but for a few.
var compressed = []string{"image/*", "audio/*", "video/*", "font/*", "application/zip", "application/gzip", "application/zstd", "image/png", "image/jpeg", "image/webp", "font/woff2"}

func warn(c *gateway.Check, p *pb.CompressionPolicy) {
	for i, t := range p.GetContentTypes() {
		switch {
		case slices.Contains(compressed, t):
			c.Add(fmt.Sprintf("content_types[%d]", i), "%q is compressed already in nearly all cases, so this costs time and saves nothing", t)
		case t == "text/event-stream" || t == "text/*":
			c.Add(fmt.Sprintf("content_types[%d]", i), "%q: each event of a stream is compressed by itself, which saves little; some proxies on the way to clients hold back compressed streams", t)
		}
	}
}
