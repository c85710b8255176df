package contract

import (
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var lambda = Contract{
	Name: "lambda", concurrency: 1, wholeBody: true,
	text: func(f *pb.Function) string { return "lambda/" + short(f.GetLambda().GetRuntime()) },
	check: func(f *pb.Function, r Report) {
		handler := f.GetLambda().GetHandler()
		if !pythonLambda(f) || handler == "" {
			return
		}
		i := strings.LastIndexByte(handler, '.')
		if i <= 0 || i == len(handler)-1 || strings.ContainsAny(handler, " \t\x00") {
			r.Add("lambda.handler", `%q must be the module and the function, such as "app.lambda_handler"`, handler)
		}
	},
	language: func(f *pb.Function) Language {
		if pythonLambda(f) {
			return Python
		}
		return Any
	},
}

func pythonLambda(f *pb.Function) bool {
	return f.GetLambda().GetRuntime() == pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON
}
