package shadow

import "github.com/penstock-gateway/penstock/xds"

// Fake is what the shadow gets in the place of a resource.
func Fake(r *xds.Resource) *xds.Resource { return newFakes().resource(r) }
