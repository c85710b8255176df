package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// problem is the body of an error (RFC 9457). Code and Details are those of the
// google.rpc.Status behind it.
type problem struct {
	Type    string            `json:"type"`
	Title   string            `json:"title"`
	Status  int               `json:"status"`
	Detail  string            `json:"detail"`
	Code    string            `json:"code"`
	Details []json.RawMessage `json:"details,omitempty"`
}

// WriteProblem answers with an error as application/problem+json (RFC 9457).
func WriteProblem(w http.ResponseWriter, httpStatus int, code codes.Code, detail string) {
	writeProblem(w, httpStatus, status.New(code, detail))
}

func writeProblem(w http.ResponseWriter, httpStatus int, st *status.Status) {
	p := problem{Type: "about:blank", Title: http.StatusText(httpStatus), Status: httpStatus, Detail: st.Message(), Code: codeNames[st.Code()]}
	for _, d := range st.Proto().GetDetails() {
		if b, err := protojson.Marshal(d); err == nil {
			p.Details = append(p.Details, b)
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		http.Error(w, st.Message(), httpStatus)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(httpStatus)
	_, _ = w.Write(append(b, '\n'))
}

// restError is the error handler of the REST form.
func restError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	st := status.Convert(err)
	code := runtime.HTTPStatusFromCode(st.Code())
	var special *runtime.HTTPStatusError
	if errors.As(err, &special) {
		code, st = special.HTTPStatus, status.Convert(special.Err)
	}
	if code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="penstock"`)
	}
	writeProblem(w, code, st)
}

// codeNames are the names of the codes in google.rpc.Code.
var codeNames = map[codes.Code]string{
	codes.OK: "OK", codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}
