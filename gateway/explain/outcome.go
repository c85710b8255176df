package explain

import (
	"fmt"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Short names of who decides.
const (
	notSent        = pb.ExplainDecider_EXPLAIN_DECIDER_NOT_SENT
	byListener     = pb.ExplainDecider_EXPLAIN_DECIDER_LISTENER
	byEdge         = pb.ExplainDecider_EXPLAIN_DECIDER_EDGE
	byMatch        = pb.ExplainDecider_EXPLAIN_DECIDER_ROUTE_MATCH
	byMethod       = pb.ExplainDecider_EXPLAIN_DECIDER_METHOD
	byAuth         = pb.ExplainDecider_EXPLAIN_DECIDER_AUTHENTICATION
	byLimit        = pb.ExplainDecider_EXPLAIN_DECIDER_LIMIT
	byConfig       = pb.ExplainDecider_EXPLAIN_DECIDER_CONFIGURATION
	byRedirect     = pb.ExplainDecider_EXPLAIN_DECIDER_REDIRECT
	byDirect       = pb.ExplainDecider_EXPLAIN_DECIDER_DIRECT_RESPONSE
	byBackend      = pb.ExplainDecider_EXPLAIN_DECIDER_BACKEND
	byFunction     = pb.ExplainDecider_EXPLAIN_DECIDER_FUNCTION
	grpcMediaType  = "application/grpc"
	contentTypeKey = "content-type"
)

// Short names of what outcomes are made with.
var (
	certain    = gateway.CertainOutcome
	possible   = gateway.PossibleOutcome
	answered   = gateway.AnsweredOutcome
	may        = gateway.MayOutcome
	statusLine = gateway.StatusLine
)

// refused is the answer of the edge that an error of the model says.
func refused(err *gateway.EdgeError) *pb.ExplainOutcome {
	return answered(byEdge, err.Answer, "%s", err.Reason)
}

// grpcStatuses are the statuses that Envoy gives gRPC clients with HTTP status 200 in the
// place of an HTTP status; 2 (UNKNOWN) for others (gRPC, doc/http-grpc-status-mapping.md).
var grpcStatuses = map[uint32]uint32{400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}

// forGRPC gives outcomes that the proxy answers by itself the status that a gRPC client
// gets.
func (x *explainer) forGRPC(o *pb.ExplainOutcome) {
	types := x.request.Headers[contentTypeKey]
	if len(types) == 0 || !strings.HasPrefix(types[0], grpcMediaType) {
		return
	}
	for _, one := range append([]*pb.ExplainOutcome{o}, o.GetMayBe()...) {
		if one.GetCode() == "" && one.GetDecidedBy() != byDirect && one.GetDecidedBy() != byRedirect && one.GetDecidedBy() != byLimit {
			continue
		}
		one.GrpcStatus = 2
		if s, ok := grpcStatuses[one.GetStatus()]; ok {
			one.GrpcStatus = s
		}
		one.Text += fmt.Sprintf("; a gRPC client gets HTTP status 200 with grpc-status %d", one.GrpcStatus)
	}
}
