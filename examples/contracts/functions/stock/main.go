// Command stock is a gRPC server that listens on the port in PORT. Its messages are
// google.protobuf.StringValue, so that it needs no generated code.
package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// get answers how many of an item there are.
func get(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var item wrapperspb.StringValue
	if err := decode(&item); err != nil {
		return nil, err
	}
	if item.GetValue() != "kettle" {
		return nil, status.Errorf(codes.NotFound, "no item %q", item.GetValue())
	}
	return wrapperspb.String("7"), grpc.SetTrailer(ctx, metadata.Pairs("shelf", "3"))
}

// watch sends each change of an item.
func watch(_ any, s grpc.ServerStream) error {
	var item wrapperspb.StringValue
	if err := s.RecvMsg(&item); err != nil {
		return err
	}
	for _, n := range []string{"7", "6", "5"} {
		if err := s.SendMsg(wrapperspb.String(n)); err != nil {
			return err
		}
	}
	return nil
}

// count answers each item as it is named.
func count(_ any, s grpc.ServerStream) error {
	for {
		var item wrapperspb.StringValue
		err := s.RecvMsg(&item)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = s.SendMsg(wrapperspb.String(item.GetValue() + ": 7"))
		}
		if err != nil {
			return err
		}
	}
}

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "shop.v1.Stock", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Get", Handler: get}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Watch", Handler: watch, ServerStreams: true},
			{StreamName: "Count", Handler: count, ServerStreams: true, ClientStreams: true},
		},
	}, struct{}{})
	log.Fatal(s.Serve(l))
}
