package jwt

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// literal reports whether a claim may be the name of a claim as a whole, which Envoy
// never looks for when there are dots in it: names that nobody else has are URIs or
// hold a domain (RFC 7519, section 4.2).
func literal(claim string) bool { return strings.Contains(claim, ".") }

// LiteralClaims are the headers of claims whose names have dots. A claim of that very
// name wins over nested ones, which the filter has copied by then.
func LiteralClaims(providers []*Provider) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	for _, p := range providers {
		for _, c := range p.Policy.GetClaimHeaders() {
			if !literal(c.GetClaim()) {
				continue
			}
			// gateway.Validate has refused what would end a text of CEL.
			filters, name, claim := "metadata.filter_metadata", "'"+p.Name+"'", "'"+c.GetClaim()+"'"
			payloads := filters + "['" + MetadataNamespace + "']"
			out = append(out, &corev3.HeaderValueOption{
				Header: &corev3.HeaderValue{Key: c.GetHeader(), Value: "%CEL('" + MetadataNamespace + "' in " + filters +
					" && " + name + " in " + payloads + " && " + claim + " in " + payloads + "[" + name + "] ? " +
					payloads + "[" + name + "][" + claim + "] : '')%"},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			})
		}
	}
	return out
}
