package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/socket"
	"github.com/penstock-gateway/penstock/telemetry"
)

// readyPoll is the pause between two looks at a child that is starting.
const readyPoll = 20 * time.Millisecond

// until calls try until it returns nil or ctx ends; the error tells the last
// failure.
func until(ctx context.Context, try func(context.Context) error) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (the last answer: %w)", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// httpReady waits for a 200 of a URL.
func httpReady(dial func(context.Context, string, string) (net.Conn, error), url string) func(context.Context) error {
	return func(ctx context.Context) error {
		return until(ctx, func(ctx context.Context) error { return httpGet(ctx, dial, url) })
	}
}

// httpGet returns an error for anything but a 200.
func httpGet(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), url string) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 512))
		return fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// controlReady waits for the control plane of a data folder, by its own socket: its
// address may want TLS of another authority.
func controlReady(dataDir string) func(context.Context) error {
	return func(ctx context.Context) error {
		return until(ctx, func(ctx context.Context) error {
			e, err := connect.Read(dataDir)
			if err != nil {
				return err
			}
			if e == nil {
				return errors.New("the control plane does not serve yet")
			}
			return httpGet(ctx, unixDialer(e.RESTSocket), "http://localhost/readyz")
		})
	}
}

// listenReady waits until somebody listens on a port or a socket (unix:/PATH).
func listenReady(address string) func(context.Context) error {
	network := "tcp"
	if path, ok := socket.Of(address); ok {
		network, address = "unix", path
	}
	return func(ctx context.Context) error {
		return until(ctx, func(ctx context.Context) error {
			conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, address)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
}

func hash32(s string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(s))
	return h.Sum32()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// colorful reports whether colours make sense. https://no-color.org
func colorful(w io.Writer) bool {
	return telemetry.IsTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
