package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var _ = addKind(kindSpec[*pb.Secret]{
	Singular: "secret", Rank: 10,
	Unused:   "nothing uses it: no listener, policy or function refers to it",
	Validate: (*checker).secret,
	Warn:     (*checker).keyWarnings,
	Unfit: func(r reference, s *pb.Secret) string {
		want, field := secretKind(r)
		if got := secretValue(s); got != "" && want != got {
			return fmt.Sprintf("%s is a secret with %s; %s needs one with %s", r.name, got, field, want)
		}
		if _, ok := s.GetData()[r.key]; r.key != "" && len(s.GetData()) > 0 && !ok {
			return fmt.Sprintf("%s has no key %q in its data%s", r.name, r.key, hint(r.key, slices.Sorted(maps.Keys(s.GetData()))))
		}
		return ""
	},
})

// secretKind is what a secret must hold for the field that names it.
func secretKind(r reference) (want, last string) {
	switch {
	case r.key != "":
		return "data", "env_secrets"
	case r.holds != "":
		return r.holds, r.field[strings.LastIndexByte(r.field, '.')+1:]
	}
	return "certificate", "tls.certificates"
}

// secretValue is what a secret holds; "" when its value is not known, as in a read.
func secretValue(s *pb.Secret) string {
	switch {
	case s.GetCertificate() != nil:
		return "certificate"
	case len(s.GetData()) > 0:
		return "data"
	case s.GetValue() != nil:
		return "jwks"
	}
	return ""
}
