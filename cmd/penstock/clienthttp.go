package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// httpFlags are the flags of the verbs that use the control plane's HTTP server.
type httpFlags struct {
	clientFlags
	http string
}

func (f *httpFlags) add(c *cobra.Command) {
	f.addWhere(c)
	c.Flags().StringVar(&f.http, "http", "", "address of the control plane's HTTP server, when the context or the machine does not say it")
}

// call makes a request. An answer other than 200 is an error with what it says.
func (f *httpFlags) call(ctx context.Context, method, path string) (*http.Response, error) {
	target, err := connect.Find(f.Where)
	if err != nil {
		return nil, err
	}
	if f.http != "" {
		target.HTTP, target.RESTSocket = f.http, ""
	}
	client, base, err := target.Client()
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, base+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	refused := &refusedCall{status: resp.StatusCode, text: strings.TrimSpace(string(b))}
	var problem struct{ Detail string }
	if json.Unmarshal(b, &problem) == nil && problem.Detail != "" {
		refused.text, refused.problem = problem.Detail, true
	}
	return nil, refused
}

// refusedCall is an answer other than 200.
type refusedCall struct {
	status  int
	text    string
	problem bool // the control plane itself says it (RFC 9457)
}

func (e *refusedCall) Error() string { return e.text }
