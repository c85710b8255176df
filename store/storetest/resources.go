package storetest

import (
	"fmt"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
)

// RouteName is the name of the i-th route that Routes makes.
func RouteName(i int) string { return fmt.Sprintf("projects/test/routes/r-%05d", i) }

// Routes returns changes that set n routes from number first on. Each is some 600
// bytes, as a usual route is, and carries value in its only rule's name, which Value
// reads back.
func Routes(first, n int, value string) []store.Change {
	out := make([]store.Change, n)
	for i := range out {
		name := RouteName(first + i)
		out[i] = store.Change{Name: name, Resource: &pb.Resource{Kind: &pb.Resource_Route{Route: &pb.Route{
			Name:      name,
			Metadata:  &pb.Metadata{Annotations: map[string]string{"filler": strings.Repeat("0123456789", 40)}},
			Hostnames: []string{fmt.Sprintf("h%d.example.com", first+i)},
			Rules: []*pb.RouteRule{{
				Name: value,
				Action: &pb.RouteRule_Forward{Forward: &pb.Forward{
					Backends: []*pb.WeightedBackend{{Backend: "backends/plain"}},
				}},
			}},
		}}}}
	}
	return out
}

// Value is the value that Routes put into a route.
func Value(r *pb.Resource) string { return r.GetRoute().GetRules()[0].GetName() }

// Certificate returns a change that sets a secret with a private key.
func Certificate(id, privateKey string) store.Change {
	name := "projects/test/secrets/" + id
	return store.Change{Name: name, Resource: &pb.Resource{Kind: &pb.Resource_Secret{Secret: &pb.Secret{
		Name:  name,
		Value: &pb.Secret_Certificate{Certificate: &pb.CertificateSecret{Chain: "chain", PrivateKey: privateKey}},
	}}}}
}

// Delete returns a change that deletes.
func Delete(name string) store.Change { return store.Change{Name: name} }
