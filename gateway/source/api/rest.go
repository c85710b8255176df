package api

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// REST returns the REST form of the services. conn leads to the gRPC server, so
// that its interceptors run for REST calls too; who is the metadata that says whose
// call it is.
func REST(ctx context.Context, conn *grpc.ClientConn, who func(context.Context, *http.Request) metadata.MD) (http.Handler, error) {
	mux := runtime.NewServeMux(
		// No header of a client becomes metadata: what is said there is said by us.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithErrorHandler(restError),
		runtime.SetQueryParameterParser(strictQuery{}),
		// Strict as the YAML format is: a misspelt field is an error, not a no-op.
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false},
		}),
		runtime.WithMetadata(who),
		runtime.WithMetadata(func(context.Context, *http.Request) metadata.MD { return metadata.Pairs(sourceHeader, "rest") }),
	)
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		pb.RegisterConfigServiceHandler, pb.RegisterProxyServiceHandler, pb.RegisterExplainServiceHandler,
		pb.RegisterGatewayServiceHandler, pb.RegisterRouteServiceHandler, pb.RegisterBackendServiceHandler,
		pb.RegisterFunctionServiceHandler, pb.RegisterFunctionVersionServiceHandler, pb.RegisterFunctionOperationsServiceHandler,
		pb.RegisterConsumerServiceHandler, pb.RegisterSecretServiceHandler, pb.RegisterAccessServiceHandler, pb.RegisterDevTokenServiceHandler,
	} {
		if err := register(ctx, mux, conn); err != nil {
			return nil, fmt.Errorf("register REST handler: %w", err)
		}
	}
	return mux, nil
}

// strictQuery refuses query parameters that a request does not have; grpc-gateway
// leaves them out, so a misspelt options.validate_only would write.
type strictQuery struct{ runtime.DefaultQueryParser }

// Parse implements runtime.QueryParameterParser.
func (p strictQuery) Parse(m proto.Message, values url.Values, filter *utilities.DoubleArray) error {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !hasField(m.ProtoReflect().Descriptor(), name) {
			return fmt.Errorf("the query parameter %.128q is unknown here", name)
		}
	}
	return p.DefaultQueryParser.Parse(m, values, filter)
}

// hasField reports whether a path such as options.validate_only leads to a field.
func hasField(d protoreflect.MessageDescriptor, path string) bool {
	name, rest, more := strings.Cut(path, ".")
	name, _, _ = strings.Cut(name, "[")
	f := d.Fields().ByName(protoreflect.Name(name))
	if f == nil {
		f = d.Fields().ByJSONName(name)
	}
	if f == nil || !more {
		return f != nil
	}
	return f.Message() != nil && hasField(f.Message(), rest)
}
