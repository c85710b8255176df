package change

import (
	"fmt"
	"maps"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// keepRollback leaves the requests of a function where a rollback sent them, when a
// write says nothing of them: the next deployment of a pipeline must not undo what
// an operator, or the automatic rollback, did. A write that gives the newest version
// requests ends that.
func keepRollback(o, old gateway.Object) {
	f, ok := o.(*pb.Function)
	if !ok {
		return
	}
	was, _ := old.(*pb.Function)
	why := was.GetMetadata().GetAnnotations()[gateway.RolledBackAnnotation]
	if len(f.GetTraffic()) == 0 && gateway.RolledBack(was) {
		f.Traffic = proto.CloneOf(was).GetTraffic()
	}
	switch {
	case !gateway.Pinned(f):
		if _, there := f.GetMetadata().GetAnnotations()[gateway.RolledBackAnnotation]; there {
			metadataOf(f).Annotations = maps.Clone(f.GetMetadata().GetAnnotations())
			delete(f.Metadata.Annotations, gateway.RolledBackAnnotation)
		}
	case why != "" && f.GetMetadata().GetAnnotations()[gateway.RolledBackAnnotation] == "":
		Annotate(f, gateway.RolledBackAnnotation, why)
	}
	// All requests for the newest version is what no traffic means.
	if t := f.GetTraffic(); len(t) == 1 && t[0].GetVersion() == 0 && t[0].GetWeight() > 0 && t[0].GetTag() == "" {
		f.Traffic = nil
	}
}

// rolledBackWarning says of a function that stays rolled back how that is ended.
func rolledBackWarning(o, old gateway.Object) []*pb.Warning {
	f, _ := o.(*pb.Function)
	was, _ := old.(*pb.Function)
	if !gateway.RolledBack(f) || !gateway.RolledBack(was) {
		return nil
	}
	return []*pb.Warning{{
		Object: f.GetName(), Field: "traffic",
		Message: fmt.Sprintf("the function was rolled back, so version %d keeps the requests and the newest version gets none; `penstock fn promote %s` gives them to it",
			f.GetTraffic()[0].GetVersion(), strings.TrimPrefix(f.GetName(), "projects/default/functions/")),
	}}
}
