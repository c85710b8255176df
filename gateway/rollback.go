package gateway

import pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

const (
	// RolledBackAnnotation marks a function whose requests went back to an older
	// version, and says why. While it is there, writes that say nothing of the
	// function's traffic leave it as it is.
	RolledBackAnnotation = "penstock.dev/rolled-back"
	// RolledBackByHand is its value when a person rolled the function back.
	RolledBackByHand = "penstock fn rollback"
)

// Pinned reports whether a function gives its newest version no requests.
func Pinned(f *pb.Function) bool {
	for _, t := range f.GetTraffic() {
		if t.GetVersion() == 0 && t.GetWeight() > 0 {
			return false
		}
	}
	return len(f.GetTraffic()) > 0
}

// RolledBack reports whether a function was rolled back and not promoted since.
func RolledBack(f *pb.Function) bool {
	return f.GetMetadata().GetAnnotations()[RolledBackAnnotation] != "" && Pinned(f)
}
