package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// tracesPage lists the newest traces and shows one. It has no data in it: what it
// shows it asks for with the secret of the link by which it was opened.
//
//go:embed traces.html
var tracesPage []byte

func newTraceWebCommand() *cobra.Command {
	var from traceFlags
	var listen string
	c := &cobra.Command{
		Use:   "web",
		Short: "Show the newest traces in a browser, until Ctrl-C",
		Long: "Serves a page on a port of this machine and prints the link to it. The link holds a secret of this call: whoever\n" +
			"does not have it gets an empty page. The traces come from the control plane, by your own rights.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			// Who may not read traces is told so here, and not by the page.
			resp, err := from.get(ctx, "/api/services")
			if err != nil {
				return err
			}
			resp.Body.Close()
			address, err := loopbackAddress(listen)
			if err != nil {
				return fmt.Errorf("--listen: %w", err)
			}
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
			if err != nil {
				return fmt.Errorf("--listen: %w", err)
			}
			web := &tracesWeb{secret: rand.Text(), host: l.Addr().String(), get: from.get}
			fmt.Fprintf(cmd.OutOrStdout(), "http://%s/#%s\n", web.host, web.secret)
			fmt.Fprintln(cmd.ErrOrStderr(), "open this link in a browser; it works until Ctrl-C")
			server := &http.Server{Handler: web, ReadHeaderTimeout: 10 * time.Second}
			defer context.AfterFunc(ctx, func() { server.Close() })()
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
	}
	from.add(c)
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "a loopback address for the page; port 0: any that is free")
	return c
}

// loopbackAddress is a loopback address; the traces of everybody are no business of
// other machines.
func loopbackAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", err
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return "", fmt.Errorf("%s is not an address of the loopback", host)
	}
	return net.JoinHostPort(host, port), nil
}

// tracesWeb serves the page to everybody, and traces to who has the secret. A cookie would
// be sent to every port of the machine; the part of a link behind # is sent to nobody.
type tracesWeb struct {
	secret, host string
	get          askJaeger
}

// ServeHTTP implements http.Handler.
func (t *tracesWeb) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	switch {
	case r.Host != t.host: // a page that has its own name lead here (DNS rebinding)
		http.Error(w, "this page is at http://"+t.host+"/ alone", http.StatusMisdirectedRequest)
	case r.Method != http.MethodGet:
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
	case !strings.HasPrefix(r.URL.Path, "/api/"):
		h.Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(tracesPage)
	case subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+t.secret)) != 1:
		http.Error(w, "open the link that `penstock trace web` printed", http.StatusUnauthorized)
	default:
		t.api(w, r)
	}
}

func (t *tracesWeb) api(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	resp, err := t.get(r.Context(), path)
	if refused := new(refusedCall); errors.As(err, &refused) {
		http.Error(w, refused.text, refused.status)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.Copy(w, resp.Body)
}
