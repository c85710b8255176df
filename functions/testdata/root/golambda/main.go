// Command golambda is a handler of aws-lambda-go, for the tests: its path chooses
// what it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

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
	case "/ticks":
		return ticks(), nil
	case "/stream", "/stream-fails":
		return stream(e.RawPath == "/stream-fails"), nil
	}
	lc, _ := lambdacontext.FromContext(ctx)
	return events.APIGatewayV2HTTPResponse{
		StatusCode: 201, Headers: map[string]string{"content-type": "text/plain"},
		Body: fmt.Sprintf("%s %s %s %s", e.RequestContext.HTTP.Method, e.Body, lc.AwsRequestID, os.Getenv("AWS_LAMBDA_FUNCTION_NAME")),
	}, nil
}

// ticks are events for three seconds.
func ticks() *events.LambdaFunctionURLStreamingResponse {
	r, w := io.Pipe()
	go func() {
		for range 30 {
			fmt.Fprint(w, "data: tick\n\n")
			time.Sleep(100 * time.Millisecond)
		}
		w.Close()
	}()
	return &events.LambdaFunctionURLStreamingResponse{
		StatusCode: 200, Headers: map[string]string{"content-type": "text/event-stream"}, Body: r,
	}
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

// rest, alb and raw are handlers of the other events; each answers what it got.
func rest(_ context.Context, e events.APIGatewayProxyRequest) (events.APIGatewayProxyResponse, error) {
	if e.Path == "/error" {
		return events.APIGatewayProxyResponse{}, errors.New("no such order")
	}
	return events.APIGatewayProxyResponse{
		StatusCode: 201, MultiValueHeaders: map[string][]string{"Set-Cookie": {"a=1", "b=2"}},
		Body: fmt.Sprint(e.HTTPMethod, e.Path, e.MultiValueQueryStringParameters["q"], e.Headers["User-Agent"], e.RequestContext.Identity.SourceIP, e.Body),
	}, nil
}

func alb(_ context.Context, e events.ALBTargetGroupRequest) (events.ALBTargetGroupResponse, error) {
	if e.Path == "/error" {
		return events.ALBTargetGroupResponse{}, errors.New("no such order")
	}
	return events.ALBTargetGroupResponse{
		StatusCode: 201, StatusDescription: "201 Created", Headers: map[string]string{"content-type": "text/plain"},
		Body: fmt.Sprint(e.HTTPMethod, e.Path, e.MultiValueQueryStringParameters["q"], e.QueryStringParameters["q"], e.Headers["user-agent"], e.Body),
	}, nil
}

func url(_ context.Context, e events.LambdaFunctionURLRequest) (events.LambdaFunctionURLResponse, error) {
	if e.RawPath == "/error" {
		return events.LambdaFunctionURLResponse{}, errors.New("no such order")
	}
	return events.LambdaFunctionURLResponse{
		StatusCode: 201, Cookies: []string{"a=1", "b=2"},
		Body: fmt.Sprint(e.RequestContext.HTTP.Method, e.RawPath, e.QueryStringParameters["q"], e.Headers["user-agent"], e.Body),
	}, nil
}

func raw(ctx context.Context, e map[string]any) (map[string]any, error) {
	if e["fail"] != nil {
		return nil, errors.New("no such order")
	}
	lc, _ := lambdacontext.FromContext(ctx)
	deadline, _ := ctx.Deadline()
	return map[string]any{
		"event": e, "custom": lc.ClientContext.Custom, "deadline": !deadline.IsZero(), "arn": lc.InvokedFunctionArn, "trace": os.Getenv("_X_AMZN_TRACE_ID"),
	}, nil
}

func main() {
	switch os.Getenv("EVENT") {
	case "rest":
		lambda.Start(rest)
	case "alb":
		lambda.Start(alb)
	case "url":
		lambda.Start(url)
	case "raw":
		lambda.Start(raw)
	}
	lambda.Start(handle)
}
