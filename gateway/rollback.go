package gateway

import (
	"slices"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

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

// VersionBefore is the version to go back to from the one that gets the requests: of
// those that have served the newest before it, else, unless the requests are pinned
// to it, the newest of the others, which ran before it came again. 0: there is
// none. versions are sorted, the newest first. Where it is not known of any whether it
// served, for they are older than that is kept, all count.
func VersionBefore(f *pb.Function, versions []*pb.FunctionVersion, serving int64) int64 {
	known := slices.ContainsFunc(versions, func(v *pb.FunctionVersion) bool { return v.GetFirstServeTime() != nil })
	other := int64(0)
	for _, v := range versions {
		if known && v.GetFirstServeTime() == nil || v.GetNumber() == serving {
			continue
		}
		if v.GetNumber() < serving {
			return v.GetNumber()
		}
		if other == 0 {
			other = v.GetNumber()
		}
	}
	if Pinned(f) {
		return 0
	}
	return other
}
