// Package lambda speaks the AWS Lambda Runtime API (2018-06-01) with the runtime
// of a handler, so that handlers written for AWS run unmodified: Python by AWS's
// own awslambdaric, and any executable named "bootstrap", as provided.al2023
// runs (aws-lambda-go among others).
//
// Each instance has a Runtime API server of its own on a loopback port. The
// instance is ready when the runtime asks for its first event, and handles one
// event at a time. A request becomes an event of one of the shapes that AWS sends
// (Shape), and the handler's answer is read by the rules of that shape.
package lambda

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/internal/launch"
)

// Runtime is which program speaks the Runtime API.
type Runtime int

const (
	// Python is CPython with awslambdaric.
	Python Runtime = iota
	// Provided is an executable named "bootstrap" in the source folder.
	Provided
)

// Options are of one function.
type Options struct {
	Runtime Runtime
	// Handler such as "app.lambda_handler"; any text for Provided.
	Handler string
	// Python is the interpreter, PythonPath the folder of awslambdaric ("": where
	// the interpreter finds it).
	Python, PythonPath string
	// Env are the function's variables: PYTHONPATH and AWS_REGION of them count.
	Env map[string]string
	// MaxPayload is the largest body of a request and the largest answer, in bytes.
	MaxPayload int64
	// Project is requestContext.apiId.
	Project string
	// Event is the form of events and answers.
	Event Shape
}

// account is AWS's account number in events and names: there is none.
const account = "000000000000"

// errNotPolled stands for a runtime that does not ask for the event that waits.
var errNotPolled = errors.New("the runtime did not ask for the event")

// Check says what is wrong with the options and the source before anything is
// started.
func Check(o Options, dir string) error {
	if o.Runtime == Provided {
		path := filepath.Join(dir, "bootstrap")
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return errors.New("the source holds no executable named bootstrap, which the PROVIDED runtime starts: build it there (for Go: GOOS=linux go build -o bootstrap .)")
		case err != nil:
			return err
		case info.IsDir() || info.Mode()&0o111 == 0:
			return errors.New("bootstrap in the source is not executable: chmod +x bootstrap")
		}
		return nil
	}
	if module, function, ok := cutLast(o.Handler, '.'); !ok || module == "" || function == "" {
		return fmt.Errorf("handler %q is not module.function, such as app.lambda_handler for lambda_handler in app.py", o.Handler)
	}
	return nil
}

// Compile has the interpreter compile awslambdaric, once, so that instances need
// not. Without it they start a little slower, so its error is only worth a note.
func Compile(ctx context.Context, o Options) error {
	cmd := exec.CommandContext(ctx, o.Python, "-m", "compileall", "-q", o.PythonPath)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, time.Second
	if err := launch.Run(cmd); err != nil {
		return fmt.Errorf("compile %s: %w: %.500s", o.PythonPath, err, out.Bytes())
	}
	return nil
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	if i := strings.LastIndexByte(s, sep); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

// New makes the contract of instances.
func New(o Options) instance.Factory {
	return func(h instance.Host) (instance.Contract, error) {
		api, err := newAPI(h, o.MaxPayload)
		if err != nil {
			return nil, err
		}
		region := o.Env["AWS_REGION"]
		if region == "" {
			region = "us-east-1"
		}
		return &contract{o: o, host: h, api: api, region: region}, nil
	}
}

type contract struct {
	o      Options
	host   instance.Host
	api    *api
	region string
}

// Command implements instance.Contract. The variables are those that AWS
// documents as reserved, as far as they have a meaning here.
func (c *contract) Command() instance.Command {
	env := map[string]string{
		"AWS_LAMBDA_RUNTIME_API":          c.api.address(),
		"AWS_LAMBDA_FUNCTION_NAME":        c.host.Name,
		"AWS_LAMBDA_FUNCTION_VERSION":     "$LATEST",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
		"AWS_LAMBDA_LOG_GROUP_NAME":       "/aws/lambda/" + c.host.Name,
		"AWS_LAMBDA_LOG_STREAM_NAME":      c.host.ID,
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"AWS_REGION":                      c.region,
		"AWS_DEFAULT_REGION":              c.region,
		"LAMBDA_TASK_ROOT":                c.host.Dir,
		"_HANDLER":                        c.o.Handler,
		"TZ":                              ":UTC",
	}
	if c.o.Runtime == Provided {
		return instance.Command{Args: []string{"./bootstrap"}, Env: env}
	}
	// Sources stay clean, as on AWS, where they are read-only. (A cache folder of
	// its own would hide the compiled standard library: 2.8 s for the first start
	// in place of 0.2 s.)
	maps.Copy(env, map[string]string{"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"})
	var path []string
	for _, p := range []string{c.o.Env["PYTHONPATH"], c.o.PythonPath} {
		if p != "" {
			path = append(path, p)
		}
	}
	if len(path) > 0 {
		env["PYTHONPATH"] = strings.Join(path, string(os.PathListSeparator))
	}
	return instance.Command{Args: []string{c.o.Python, "-m", "awslambdaric", c.o.Handler}, Env: env}
}

// WaitReady implements instance.Contract: ready is the first poll for an event.
func (c *contract) WaitReady(ctx context.Context) error {
	select {
	case <-c.api.polled:
		return nil
	case <-c.api.initFailed:
		return c.api.initError
	case <-ctx.Done():
	}
	// A runtime that fails to start says why and then ends: prefer what it said.
	select {
	case <-c.api.initFailed:
		return c.api.initError
	default:
		return ctx.Err()
	}
}

// Cancels implements instance.Contract: the Runtime API has no way to give up an
// event, so its process must end.
func (c *contract) Cancels() bool { return false }

// MaxBody implements instance.WholeBody: an event carries all of the body.
func (c *contract) MaxBody() int64 { return c.o.MaxPayload }

// Exited implements instance.Contract.
func (c *contract) Exited() { c.api.exit() }

// Close implements instance.Contract.
func (c *contract) Close() { c.api.close() }

// Serve implements instance.Contract.
func (c *contract) Serve(w http.ResponseWriter, r *http.Request, inv *instance.Invocation) error {
	body, err := io.ReadAll(r.Body) // all of it is here: see MaxBody
	if err != nil {
		return context.Canceled
	}
	ctx := inv.StartHandler(r.Context())
	span := trace.SpanContextFromContext(ctx)
	event, err := c.o.Event.event(request{
		Request: r, body: body, id: inv.ID, project: c.o.Project, function: c.host.Name, region: c.region, span: span, now: time.Now(),
	})
	if err != nil {
		return err
	}
	client := ""
	if c.o.Event == Raw {
		if client, err = clientContext(r); err != nil {
			return err
		}
	}
	k := &call{
		client: client,
		id:     inv.ID, event: event, deadline: inv.Deadline, trace: xray(span), inv: inv,
		arn:    "arn:aws:lambda:" + c.region + ":" + account + ":function:" + c.host.Name,
		result: make(chan *result, 1), over: make(chan struct{}),
	}
	defer close(k.over)
	res, err := c.api.invoke(ctx, k)
	if err != nil {
		return err
	}
	return c.write(ctx, w, res, inv)
}

// write answers with what the runtime posted.
func (c *contract) write(ctx context.Context, w http.ResponseWriter, res *result, inv *instance.Invocation) error {
	switch {
	case res.failure != nil:
		c.host.Logger.WarnContext(ctx, "the handler failed", "request_id", inv.ID, "type", res.failure.Type, "error", res.failure.Message, "stack", res.failure.stack())
		return c.internalError(w, inv, instance.KindHandlerError, res.failure.String())
	case res.tooLarge:
		return c.internalError(w, inv, instance.KindTooLarge, fmt.Sprintf("the handler's answer is larger than %d bytes", c.o.MaxPayload))
	case res.stream != nil:
		return c.writeStream(ctx, w, res.stream, inv)
	}
	inv.End()
	answer, err := c.o.Event.parse(res.payload)
	if err != nil {
		return c.internalError(w, inv, instance.KindBadResponse, err.Error())
	}
	answer.write(w)
	return nil
}

// internalError is what AWS answers for a handler that failed; the reason is for
// the log only.
func (c *contract) internalError(w http.ResponseWriter, inv *instance.Invocation, kind, detail string) error {
	inv.End()
	w.Header().Set("x-amzn-requestid", inv.ID)
	return &instance.Failed{Status: http.StatusBadGateway, Kind: kind, Body: c.o.Event.internal(), Detail: detail}
}

// xray is the trace header of AWS X-Ray, made of a W3C trace context: the trace
// id of X-Ray is the same 128 bits, the first 32 of them apart.
func xray(s trace.SpanContext) string {
	if !s.IsValid() {
		return ""
	}
	id, sampled := s.TraceID().String(), "0"
	if s.IsSampled() {
		sampled = "1"
	}
	return "Root=1-" + id[:8] + "-" + id[8:] + ";Parent=" + s.SpanID().String() + ";Sampled=" + sampled
}
