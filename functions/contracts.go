package functions

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/runtime/lambda"
	"github.com/penstock-gateway/penstock/functions/runtime/server"
)

// runnable is how the instances of a function are run and spoken to.
type runnable struct {
	factory     instance.Factory
	concurrency int
	// dir is the working directory; empty: the source.
	dir string
	// uploadStall is how long a sender may pause; 0: the instance's default.
	uploadStall time.Duration
}

// contract makes a function runnable out of its source, which is there and built.
// Its errors are for the function's author. A new contract is one more case here
// and a folder below runtime/.
func (m *manager) contract(f *pb.Function, dir string) (runnable, error) {
	switch contract := f.GetContract().(type) {
	case *pb.Function_Lambda:
		return m.lambda(f, contract.Lambda, dir)
	case *pb.Function_Server:
		n := int(cmp.Or(f.GetConcurrency(), 100))
		return runnable{
			factory:     server.New(server.Options{Command: contract.Server.GetCommand(), Concurrency: n}),
			concurrency: n,
		}, nil
	}
	return runnable{}, errors.New("its contract is not one that this runner knows: it needs a newer runner")
}

func (m *manager) lambda(f *pb.Function, c *pb.LambdaContract, dir string) (runnable, error) {
	o := lambda.Options{
		Handler: c.GetHandler(), Python: m.config.Python, PythonPath: m.config.LambdaPythonPath,
		Env: f.GetEnv(), MaxPayload: m.config.MaxEventBytes, Project: projectOf(f.GetName()),
	}
	switch c.GetRuntime() {
	case pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON:
		o.Runtime = lambda.Python
	case pb.LambdaRuntime_LAMBDA_RUNTIME_PROVIDED:
		o.Runtime = lambda.Provided
	default:
		return runnable{}, fmt.Errorf("runtime %s is not one that this runner knows", c.GetRuntime())
	}
	if n := f.GetConcurrency(); n > 1 {
		return runnable{}, fmt.Errorf("concurrency is %d, but a Lambda handler takes one event at a time: use instances", n)
	}
	if err := lambda.Check(o, dir); err != nil {
		return runnable{}, err
	}
	return runnable{factory: lambda.New(o), concurrency: 1}, nil
}

func projectOf(name string) string {
	p := strings.Split(name, "/")
	return p[min(1, len(p)-1)]
}
