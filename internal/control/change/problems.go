package change

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// maxViolations bounds the problems in one error, which travels in the trailers
// of a response.
const maxViolations = 50

// Invalid makes the error of a write with problems: BadRequest for any client,
// and one ObjectProblem each for ours, which knows where objects were written.
func Invalid(problems []gateway.Problem) error {
	var lines []string
	bad := &errdetails.BadRequest{}
	details := []protoreflect.ProtoMessage{bad}
	for i, p := range problems {
		if i == maxViolations {
			lines = append(lines, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		lines = append(lines, describe(p))
		bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: p.Field, Description: p.Object + ": " + p.Message,
		})
		details = append(details, &pb.ObjectProblem{Object: p.Object, Field: p.Field, Message: p.Message})
	}
	st := status.New(codes.InvalidArgument, strings.Join(lines, "\n"))
	for _, d := range details {
		with, err := st.WithDetails(protoadapt.MessageV1Of(d))
		if err != nil {
			break
		}
		st = with
	}
	return st.Err()
}

func describe(p gateway.Problem) string {
	where := p.Object
	if o := p.Origin; o.GetFile() != "" {
		where = fmt.Sprintf("%s:%d: %s", o.GetFile(), o.GetLine(), p.Object)
	}
	if p.Field == "" {
		return where + ": " + p.Message
	}
	return where + ": " + p.Field + ": " + p.Message
}

// Key is what makes two problems the same: where and what, not the origin.
func Key(p gateway.Problem) string { return p.Object + "\x00" + p.Field + "\x00" + p.Message }

// Unique sorts problems and drops those that several views have.
func Unique(all []gateway.Problem) []gateway.Problem {
	slices.SortFunc(all, func(a, b gateway.Problem) int { return strings.Compare(Key(a), Key(b)) })
	return slices.CompactFunc(all, func(a, b gateway.Problem) bool { return Key(a) == Key(b) })
}
