package functions

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/runtime/azure"
	"github.com/penstock-gateway/penstock/functions/runtime/framework"
	"github.com/penstock-gateway/penstock/functions/runtime/lambda"
	"github.com/penstock-gateway/penstock/functions/runtime/server"
)

// runnable is how the instances of a function are run and spoken to.
type runnable struct {
	factory     instance.Factory
	concurrency int
	// dir is the working directory; empty: the source.
	dir string
	// uploadStall is how long a sender may pause, streamAfter when a body counts as a
	// stream; 0: the instance's default.
	uploadStall, streamAfter time.Duration
}

// grpcStreamAfter is how long the body of a call of one message, which comes
// right behind its head, is waited for.
const grpcStreamAfter = 5 * time.Millisecond

// execution is how the instances of functions with a contract are run here.
type execution struct {
	// prepare makes a function runnable out of its source, which is there and built; layer
	// is the folder of its installed Python dependencies, if any. Errors are for the
	// function's author.
	prepare func(m *manager, ctx context.Context, f *pb.Function, dir, layer string) (runnable, error)
	// tool finds what the runner installs beside the interpreter of a language; nil: nothing.
	tool func(m *manager, l contract.Language) func(context.Context) (string, error)
}

// executions are those of all contracts, by name. A new contract is one more here, a file in
// contract/ and a folder below runtime/.
var executions = map[protoreflect.Name]execution{
	"lambda":              {prepare: (*manager).lambda, tool: (*manager).lambdaTool},
	"server":              {prepare: (*manager).server},
	"functions_framework": {prepare: (*manager).framework, tool: (*manager).frameworkTool},
	"azure":               {prepare: (*manager).azure},
}

// contract makes a function runnable. See execution.prepare.
func (m *manager) contract(ctx context.Context, f *pb.Function, dir, layer string) (runnable, error) {
	r, ok := executions[contract.Of(f).Name]
	if !ok {
		return runnable{}, errors.New("its contract is not one that this runner knows: it needs a newer runner")
	}
	return r.prepare(m, ctx, f, dir, layer)
}

var lambdaShapes = map[pb.LambdaEvent]lambda.Shape{
	pb.LambdaEvent_LAMBDA_EVENT_UNSPECIFIED:  lambda.HTTPAPIV2,
	pb.LambdaEvent_LAMBDA_EVENT_HTTP_API_V2:  lambda.HTTPAPIV2,
	pb.LambdaEvent_LAMBDA_EVENT_REST_API_V1:  lambda.RESTAPIV1,
	pb.LambdaEvent_LAMBDA_EVENT_FUNCTION_URL: lambda.FunctionURL,
	pb.LambdaEvent_LAMBDA_EVENT_ALB:          lambda.ALB,
	pb.LambdaEvent_LAMBDA_EVENT_RAW:          lambda.Raw,
}

func (m *manager) lambda(ctx context.Context, f *pb.Function, dir, layer string) (runnable, error) {
	c := f.GetLambda()
	o := lambda.Options{
		Handler: c.GetHandler(),
		Env:     f.GetEnv(), MaxPayload: m.config.MaxEventBytes, Project: projectOf(f.GetName()),
	}
	switch c.GetRuntime() {
	case pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON:
		path, err := m.installed(ctx, f, "the Lambda runtime for Python", m.awslambdaric)
		if err != nil {
			return runnable{}, fmt.Errorf("the Lambda runtime for Python: %w", err)
		}
		o.Runtime, o.Python, o.PythonPath = lambda.Python, m.interpreters.python().path, searchPath(layer, path)
	case pb.LambdaRuntime_LAMBDA_RUNTIME_PROVIDED:
		o.Runtime = lambda.Provided
	default:
		return runnable{}, fmt.Errorf("runtime %s is not one that this runner knows", c.GetRuntime())
	}
	shape, ok := lambdaShapes[c.GetEvent()]
	if !ok {
		return runnable{}, fmt.Errorf("event %s is not one that this runner knows", c.GetEvent())
	}
	o.Event = shape
	if n := f.GetConcurrency(); n > 1 {
		return runnable{}, fmt.Errorf("concurrency is %d, but a Lambda handler takes one event at a time: use instances", n)
	}
	if err := lambda.Check(o, dir); err != nil {
		return runnable{}, err
	}
	return runnable{factory: lambda.New(o), concurrency: 1}, nil
}

// installed is what find finds of a runtime, with a line in the function's log when it has
// to be installed first.
func (m *manager) installed(ctx context.Context, f *pb.Function, what string, find func(context.Context) (string, error)) (string, error) {
	began := time.Now()
	late := time.AfterFunc(foundAtOnce, func() {
		m.logs.say(f.GetName(), "", "it waits for "+what+", which is being installed, once for all functions of this machine")
	})
	path, err := find(ctx)
	if !late.Stop() && err == nil {
		m.logs.say(f.GetName(), "", fmt.Sprintf("%s is there, after %.1f s", what, time.Since(began).Seconds()))
	}
	return path, err
}

// foundAtOnce is longer than it takes to find what is installed.
const foundAtOnce = time.Second

func (m *manager) lambdaTool(l contract.Language) func(context.Context) (string, error) {
	if l == contract.Python {
		return m.config.LambdaPython
	}
	return nil
}

// awslambdaric is where AWS's runtime interface client is; empty: where the
// interpreter finds it. What a person installed may not be compiled yet, which
// functions cannot do for themselves: that is done once, beside all else.
func (m *manager) awslambdaric(ctx context.Context) (string, error) {
	if m.config.LambdaPython == nil {
		return "", nil
	}
	path, err := m.config.LambdaPython(ctx)
	if err == nil && path != "" {
		m.compileOnce.Do(func() { m.running.Go(func() { m.compile(path) }) })
	}
	return path, err
}

func (m *manager) server(_ context.Context, f *pb.Function, _, _ string) (runnable, error) {
	c := f.GetServer()
	if c.GetImage() != "" {
		return runnable{}, fmt.Errorf("image %q: this runner runs programs on its machine, it cannot run container images; give the program in server.command", c.GetImage())
	}
	n := contract.Concurrency(f)
	o := server.Options{Command: c.GetCommand(), Concurrency: n}
	r := runnable{concurrency: n}
	switch c.GetProtocol() {
	case pb.ServerProtocol_SERVER_PROTOCOL_UNSPECIFIED, pb.ServerProtocol_SERVER_PROTOCOL_HTTP1:
	case pb.ServerProtocol_SERVER_PROTOCOL_H2C:
		o.HTTP2 = true
		// A gRPC stream may be silent for as long as it may last, and the first word
		// may be the server's.
		r.streamAfter = grpcStreamAfter
		r.uploadStall = cmp.Or(f.GetTimeout().AsDuration(), 30*time.Second)
	default:
		return runnable{}, fmt.Errorf("protocol %s is not one that this runner knows", c.GetProtocol())
	}
	r.factory = server.New(o)
	return r, nil
}

func (m *manager) framework(ctx context.Context, f *pb.Function, dir, layer string) (runnable, error) {
	c := f.GetFunctionsFramework()
	o := framework.Options{
		Target: c.GetTarget(), CloudEvent: c.GetSignature() == pb.FunctionSignature_FUNCTION_SIGNATURE_CLOUDEVENT,
		Env: f.GetEnv(), Concurrency: contract.Concurrency(f),
	}
	switch c.GetRuntime() {
	case pb.FunctionsFrameworkRuntime_FUNCTIONS_FRAMEWORK_RUNTIME_PYTHON:
		o.Runtime, o.Interpreter = framework.Python, m.interpreters.python().path
	case pb.FunctionsFrameworkRuntime_FUNCTIONS_FRAMEWORK_RUNTIME_NODE:
		o.Runtime, o.Interpreter = framework.Node, m.interpreters.node().path
	default:
		return runnable{}, fmt.Errorf("runtime %s is not one that this runner knows", c.GetRuntime())
	}
	if find := m.frameworkTool(contract.LanguageOf(f)); find != nil {
		path, err := m.installed(ctx, f, "the Functions Framework", find)
		if err != nil {
			return runnable{}, fmt.Errorf("the Functions Framework: %w", err)
		}
		o.Path = path
	}
	o.Path = searchPath(layer, o.Path)
	if err := framework.Check(o, dir); err != nil {
		return runnable{}, err
	}
	factory, err := framework.New(o, dir)
	return runnable{factory: factory, concurrency: o.Concurrency}, err
}

func (m *manager) frameworkTool(l contract.Language) func(context.Context) (string, error) {
	switch l {
	case contract.Python:
		return m.config.FrameworkPython
	case contract.Node:
		return m.config.FrameworkNode
	}
	return nil
}

func (m *manager) azure(_ context.Context, f *pb.Function, dir, _ string) (runnable, error) {
	c := f.GetAzure()
	app, err := azure.Load(dir, c.GetFunction(), f.GetEnv())
	if err != nil {
		return runnable{}, err
	}
	for _, what := range app.Ignored {
		m.config.Logger.Info("without effect in this function", "function", f.GetName(), "what", what)
	}
	n := contract.Concurrency(f)
	o := azure.Options{App: app, Concurrency: n, MaxPayload: m.config.MaxEventBytes, Only: c.GetFunction() != ""}
	return runnable{factory: azure.New(o), concurrency: n, dir: app.Dir}, nil
}

func projectOf(name string) string {
	p := strings.Split(name, "/")
	return p[min(1, len(p)-1)]
}

// searchPath joins folders as PYTHONPATH does: the function's own dependencies go
// before what the runner brings.
func searchPath(dirs ...string) string {
	dirs = slices.DeleteFunc(dirs, func(d string) bool { return d == "" })
	return strings.Join(dirs, string(os.PathListSeparator))
}
