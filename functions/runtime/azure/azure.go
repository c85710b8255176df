// Package azure runs custom handlers that were written for Azure Functions: a
// program that listens on the port in FUNCTIONS_CUSTOMHANDLER_PORT, described by
// host.json, with one folder and a function.json for each function.
//
// A request finds its function by the route in function.json. The handler gets it
// as it is (enableForwardingHttpRequest or enableProxyingHttpRequest), or as the
// invocation document of the Functions host: POST /{function} with Data and
// Metadata, answered with Outputs, ReturnValue and Logs. The contract is that of
// Azure/azure-functions-host, src/WebJobs.Script/Workers/Http.
package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"github.com/penstock-gateway/penstock/functions/instance"
	"github.com/penstock-gateway/penstock/functions/runtime/server"
)

// Options are of one function.
type Options struct {
	// App is what its source says.
	App *App
	// Only means that the one function of App takes all requests, whatever their
	// path.
	Only bool
	// Concurrency is how many requests are handled at once.
	Concurrency int
	// MaxPayload is the largest body of a request that travels in an invocation
	// document, and the largest answer to one, in bytes.
	MaxPayload int64
}

// hostVersion is what handlers are told of the host.
const hostVersion = "4.0.0"

// New makes the contract of instances.
func New(o Options) instance.Factory {
	newServer := server.New(server.Options{
		Command: o.App.Args, Concurrency: o.Concurrency,
		PortVariables: []string{"FUNCTIONS_CUSTOMHANDLER_PORT", "FUNCTIONS_HTTPWORKER_PORT"},
		Env: map[string]string{
			"FUNCTIONS_WORKER_RUNTIME": "custom", "AzureWebJobsScriptRoot": o.App.root,
		},
	})
	return func(h instance.Host) (instance.Contract, error) {
		inner, err := newServer(h)
		if err != nil {
			return nil, err
		}
		c := &contract{Contract: inner, o: o, host: h}
		if o.documents() {
			return &wholeContract{c}, nil
		}
		return c, nil
	}
}

// documents reports whether all requests travel in invocation documents.
func (o *Options) documents() bool {
	return !slices.ContainsFunc(o.App.Functions, o.forwards)
}

// forwards reports whether a function gets requests as they are: only when it
// answers with an http output, as on Azure.
func (o *Options) forwards(f *Function) bool { return o.App.Forward && f.Output != "" }

type contract struct {
	instance.Contract // the server's
	o                 Options
	host              instance.Host
}

// wholeContract needs all of a body.
type wholeContract struct{ *contract }

// MaxBody implements instance.WholeBody.
func (c *wholeContract) MaxBody() int64 { return c.o.MaxPayload }

// Command implements instance.Contract.
func (c *contract) Command() instance.Command {
	cmd := c.Contract.Command()
	cmd.Env["FUNCTIONS_CUSTOMHANDLER_WORKER_ID"], cmd.Env["FUNCTIONS_HTTPWORKER_ID"] = c.host.ID, c.host.ID
	return cmd
}

// find is the function of a request, with the parameters of its route.
func (c *contract) find(r *http.Request) (*Function, map[string]string) {
	path := r.URL.EscapedPath()
	for _, f := range c.o.App.Functions {
		if len(f.Methods) > 0 && !slices.Contains(f.Methods, r.Method) {
			continue
		}
		params, ok := f.route.match(path)
		if ok || c.o.Only {
			return f, params
		}
	}
	return nil, nil
}

// Serve implements instance.Contract.
func (c *contract) Serve(w http.ResponseWriter, r *http.Request, inv *instance.Invocation) error {
	f, params := c.find(r)
	if f == nil { // as the host of Azure answers
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusNotFound)
		return nil
	}
	if c.o.forwards(f) {
		out := r.Clone(r.Context())
		out.Header.Set("X-Azure-Functions-InvocationId", inv.ID)
		out.Header.Set("X-Azure-Functions-HostVersion", hostVersion)
		return c.Contract.Serve(w, out, inv)
	}
	return c.invoke(w, r, inv, f, params)
}

// invoke sends the invocation document of a request and answers with what comes
// back.
func (c *contract) invoke(w http.ResponseWriter, r *http.Request, inv *instance.Invocation, f *Function, params map[string]string) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, c.o.MaxPayload+1))
	if err != nil {
		return context.Canceled
	}
	if int64(len(body)) > c.o.MaxPayload {
		return &instance.Failed{
			Status: http.StatusRequestEntityTooLarge, Kind: instance.KindTooLarge,
			Detail: fmt.Sprintf("the request body is larger than %d bytes, the most that this function takes", c.o.MaxPayload),
		}
	}
	document, err := newDocument(r, body, f, params)
	if err != nil {
		return err
	}
	out, err := http.NewRequestWithContext(r.Context(), http.MethodPost, "/"+f.Name, bytes.NewReader(document))
	if err != nil {
		return err
	}
	out.Host = r.Host
	out.Header = http.Header{
		"Content-Type": {"application/json; charset=utf-8"}, "User-Agent": {"Azure-Functions-Host/" + hostVersion},
		"X-Azure-Functions-Invocationid": {inv.ID}, "X-Azure-Functions-Hostversion": {hostVersion},
	}
	answer := &capture{header: http.Header{}, most: c.o.MaxPayload}
	err = c.Contract.Serve(answer, out, inv)
	switch {
	case answer.over:
		return &instance.Failed{
			Status: http.StatusBadGateway, Kind: instance.KindTooLarge,
			Detail: fmt.Sprintf("the handler's answer is larger than %d bytes", c.o.MaxPayload),
		}
	case err != nil:
		return err
	}
	return c.answer(w, r, inv, f, answer)
}

// answer turns the handler's answer to a document into the caller's.
func (c *contract) answer(w http.ResponseWriter, r *http.Request, inv *instance.Invocation, f *Function, got *capture) error {
	if got.status < 200 || got.status > 299 {
		c.host.Logger.WarnContext(r.Context(), "the handler failed", "request_id", inv.ID, "azure_function", f.Name, "status", got.status, "answer", excerpt(got.body.Bytes()))
		return &instance.Failed{
			Status: http.StatusInternalServerError, Kind: instance.KindHandlerError,
			Detail: fmt.Sprintf("the handler answered with status %d", got.status),
		}
	}
	res, err := parseAnswer(got.body.Bytes(), f)
	if err != nil {
		return &instance.Failed{
			Status: http.StatusBadGateway, Kind: instance.KindBadResponse, Detail: "the handler's answer: " + err.Error(),
		}
	}
	for _, line := range res.logs {
		c.host.Logger.InfoContext(r.Context(), line, "request_id", inv.ID, "stream", "log")
	}
	for k, v := range res.header {
		w.Header()[k] = v
	}
	if res.status != http.StatusNoContent && res.status != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(len(res.body)))
	} else {
		res.body = nil
	}
	w.WriteHeader(res.status)
	_, _ = w.Write(res.body) // a caller that went away needs none
	return nil
}

func excerpt(b []byte) string { return string(b[:min(len(b), 500)]) }

// capture takes an answer of the handler, up to a bound.
type capture struct {
	header http.Header
	status int
	body   bytes.Buffer
	most   int64
	over   bool
}

// Header implements http.ResponseWriter.
func (c *capture) Header() http.Header { return c.header }

// WriteHeader implements http.ResponseWriter.
func (c *capture) WriteHeader(status int) {
	if status >= 200 {
		c.status = status
	}
}

// Write implements http.ResponseWriter.
func (c *capture) Write(b []byte) (int, error) {
	if int64(c.body.Len()+len(b)) > c.most {
		c.over = true
		return 0, errors.New("the answer is too large")
	}
	return c.body.Write(b)
}

// FlushError is for http.ResponseController: there is nothing to do.
func (c *capture) FlushError() error { return nil }
