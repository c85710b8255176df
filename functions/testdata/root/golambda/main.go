// Command golambda is a handler of aws-lambda-go, for the tests: its path chooses
// what it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

func handle(ctx context.Context, e events.APIGatewayV2HTTPRequest) (any, error) {
	switch e.RawPath {
	case "/error":
		return nil, errors.New("no such order")
	case "/panic":
		panic("out of kettles")
	case "/stream", "/stream-fails":
		return stream(e.RawPath == "/stream-fails"), nil
	}
	lc, _ := lambdacontext.FromContext(ctx)
	return events.APIGatewayV2HTTPResponse{
		StatusCode: 201, Headers: map[string]string{"content-type": "text/plain"},
		Body: fmt.Sprintf("%s %s %s %s", e.RequestContext.HTTP.Method, e.Body, lc.AwsRequestID, os.Getenv("AWS_LAMBDA_FUNCTION_NAME")),
	}, nil
}

// stream answers piece by piece: the next one only when the last was written.
func stream(fails bool) *events.LambdaFunctionURLStreamingResponse {
	r, w := io.Pipe()
	go func() {
		for i := range 3 {
			fmt.Fprintf(w, "piece %d\n", i)
		}
		if fails {
			w.CloseWithError(errors.New("lost the thread"))
			return
		}
		w.Close()
	}()
	return &events.LambdaFunctionURLStreamingResponse{
		StatusCode: 200, Headers: map[string]string{"content-type": "text/event-stream"}, Cookies: []string{"a=1"}, Body: r,
	}
}

func main() { lambda.Start(handle) }
