package gateway

import (
	"fmt"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var _ = addKind(kindSpec[*pb.Consumer]{
	Singular: "consumer", Rank: 20,
	Unused: "nothing uses it: no policy lists it",
	Keys:   func(c *pb.Consumer) []string { return []string{identityKey(c)} },
	Check: func(s *Snapshot, c *pb.Consumer) []Problem {
		if c.GetJwt() == nil {
			return nil
		}
		var out []Problem
		for _, other := range s.referring(identityKey(c)) {
			if other != c.GetName() {
				out = append(out, Problem{
					Object: c.GetName(), Field: "jwt", Origin: c.GetMetadata().GetOrigin(),
					Message: fmt.Sprintf("%s has the same issuer and subject, so nobody could tell the two apart; change one", other),
				})
			}
		}
		return out
	},
})

// identityKey stands in the reverse references for what a consumer is recognised
// by, so that two consumers with one identity find each other.
func identityKey(c *pb.Consumer) string {
	return fmt.Sprintf("identity:%s:%q:%q", projectOf(c.GetName()), c.GetJwt().GetIssuer(), c.GetJwt().GetSubject())
}
