package instance

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Codes of gRPC (google.rpc.Code).
const (
	grpcCanceled          = 1
	grpcUnknown           = 2
	grpcDeadlineExceeded  = 4
	grpcResourceExhausted = 8
	grpcInternal          = 13
	grpcUnavailable       = 14
)

// isGRPC reports whether the caller speaks gRPC and so does not read bodies of JSON.
func isGRPC(r *http.Request) bool {
	if r.ProtoMajor != 2 {
		return false
	}
	rest, ok := strings.CutPrefix(strings.ToLower(r.Header.Get("Content-Type")), "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';' || rest[0] == ' ')
}

// grpcCode is what an answer of the shim means in gRPC.
func grpcCode(status int, kind string) int {
	switch {
	case kind == KindBadResponse:
		return grpcInternal
	case kind == KindHandlerError:
		return grpcUnknown
	case kind == KindTooLarge:
		return grpcResourceExhausted
	case status == statusCanceled:
		return grpcCanceled
	case status == http.StatusGatewayTimeout, status == http.StatusRequestTimeout:
		return grpcDeadlineExceeded
	}
	return grpcUnavailable
}

// writeGRPC answers with trailers only: the status of gRPC over HTTP/2 is in the
// one head that there is.
func writeGRPC(w http.ResponseWriter, status int, kind, text string) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(grpcCode(status, kind)))
	h.Set("Grpc-Message", percentEncode(text))
	w.WriteHeader(http.StatusOK)
}

// percentEncode is the encoding of grpc-message.
func percentEncode(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
