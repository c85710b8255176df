// Command greeter is a handler for AWS Lambda behind a REST API.
package main

import (
	"context"
	"encoding/json"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
)

func greet(_ context.Context, e events.APIGatewayProxyRequest) (events.APIGatewayProxyResponse, error) {
	body, err := json.Marshal(map[string]any{"greetings": e.MultiValueQueryStringParameters["name"], "path": e.Path})
	return events.APIGatewayProxyResponse{StatusCode: 200, Body: string(body)}, err
}

func main() { lambda.Start(greet) }
