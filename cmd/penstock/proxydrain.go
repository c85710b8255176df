package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// drainLook is how often Envoy is asked how many requests are under way.
const drainLook = 50 * time.Millisecond

// drain has Envoy say that it is going away, then take no connections any more, and waits
// until no request is under way. It returns when stopTimeout is over at the latest.
// https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/operations/draining
func (f *proxyRunFlags) drain(ctx context.Context, admin string, log *slog.Logger) {
	log.Info("draining", "drain_time", f.drainTime.String(), "stop_timeout", f.stopTimeout.String())
	ctx, cancel := context.WithTimeout(ctx, f.stopTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: unixDialer(admin)}}
	defer client.CloseIdleConnections()
	// From then on each response says that its connection closes, too.
	err := envoyAdmin(ctx, client, http.MethodPost, "/healthcheck/fail", io.Discard)
	if err == nil {
		select {
		case <-time.After(f.drainTime):
		case <-ctx.Done():
		}
		err = envoyAdmin(ctx, client, http.MethodPost, "/drain_listeners", io.Discard)
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("Envoy does not drain; it is ended at once", "error", err)
		return
	}
	look := time.NewTicker(drainLook)
	defer look.Stop()
	for {
		active, err := activeRequests(ctx, client)
		switch {
		case ctx.Err() != nil:
			log.Warn("the time to stop is over, and requests are under way still: they are cut off (--stop-timeout)")
			return
		case err != nil:
			log.Warn("Envoy does not say how many requests are under way; it is ended", "error", err)
			return
		case active == 0:
			return
		}
		select {
		case <-look.C:
		case <-ctx.Done():
		}
	}
}

// activeRequests is how many requests of clients are under way in an Envoy.
func activeRequests(ctx context.Context, client *http.Client) (n int, err error) {
	var out strings.Builder
	if err := envoyAdmin(ctx, client, http.MethodGet, "/stats?filter=downstream_rq_active$", &out); err != nil {
		return 0, err
	}
	for line := range strings.Lines(out.String()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if !strings.HasPrefix(name, "http.") || strings.HasPrefix(name, "http.admin.") {
			continue // the question itself is one of the latter
		}
		v, err := strconv.Atoi(value)
		if err != nil {
			return 0, fmt.Errorf("the statistic %q: %w", line, err)
		}
		n += v
	}
	return n, nil
}

func envoyAdmin(ctx context.Context, client *http.Client, method, path string, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(out, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s of Envoy's admin interface: %s", path, res.Status)
	}
	return nil
}
