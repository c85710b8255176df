// Package accesstest opens the guard of the configuration API for tests of other
// packages, which call as the owner.
package accesstest

import (
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// Open opens the guard of a data folder.
func Open(tb testing.TB, dataDir string) *access.Service {
	tb.Helper()
	return OpenWith(tb, access.Options{Dir: connect.Dir(dataDir), Store: NewState()})
}

// OpenWith opens the guard with options; the log is thrown away.
func OpenWith(tb testing.TB, o access.Options) *access.Service {
	tb.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	s, err := access.Open(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// Do makes an HTTP request as the owner of a data folder, and returns the status
// and the body of the answer.
func Do(tb testing.TB, dataDir, method, url string, body io.Reader) (status int, answer string) {
	tb.Helper()
	r, err := http.NewRequestWithContext(tb.Context(), method, url, body)
	if err != nil {
		tb.Fatal(err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if err := connect.AsOwner(r, dataDir); err != nil {
		tb.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
