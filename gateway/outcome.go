package gateway

import (
	"fmt"
	"net/http"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// CertainOutcome is an outcome that follows from the request and the configuration alone.
func CertainOutcome(by pb.ExplainDecider, status uint32, format string, args ...any) *pb.ExplainOutcome {
	return &pb.ExplainOutcome{Text: fmt.Sprintf(format, args...), Status: status, DecidedBy: by, Certain: true}
}

// PossibleOutcome is an outcome that depends on more.
func PossibleOutcome(by pb.ExplainDecider, status uint32, format string, args ...any) *pb.ExplainOutcome {
	o := CertainOutcome(by, status, format, args...)
	o.Certain = false
	return o
}

// AnsweredOutcome is an answer of the gateway's own, with its code.
func AnsweredOutcome(by pb.ExplainDecider, a Answer, format string, args ...any) *pb.ExplainOutcome {
	o := CertainOutcome(by, a.Status, "%s: %s (%s)", StatusLine(a.Status), fmt.Sprintf(format, args...), a.Code)
	o.Code = a.Code
	return o
}

// MayOutcome is AnsweredOutcome for what depends on more.
func MayOutcome(by pb.ExplainDecider, a Answer, format string, args ...any) *pb.ExplainOutcome {
	o := AnsweredOutcome(by, a, format, args...)
	o.Certain = false
	return o
}

// StatusLine is "404 Not Found".
func StatusLine(status uint32) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(int(status))))
}
