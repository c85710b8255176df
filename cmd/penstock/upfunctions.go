package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// functionsWait is how long `up` holds back its summary for functions that are
// still being built or started. The gateway serves meanwhile.
const functionsWait = 30 * time.Second

// readiness sorts the functions by what a request to them would meet.
type readiness struct {
	ready, idle       int      // idle ones are ready too: their first request starts an instance
	starting, failing []string // failing ones with their reason
}

func (r *readiness) String() string {
	total := r.ready + len(r.starting) + len(r.failing)
	if total == 0 {
		return ""
	}
	s := fmt.Sprintf("%d of %d ready", r.ready, total)
	switch {
	case r.idle == 1 && r.ready == 1:
		s += " (0 running, starts at the first request)"
	case r.idle > 0 && r.idle == r.ready:
		s += " (0 running, each starts at its first request)"
	case r.idle > 0:
		s += fmt.Sprintf(" (%d running, %d more at the first request)", r.ready-r.idle, r.idle)
	}
	if len(r.starting) > 0 {
		s += "; starting: " + strings.Join(r.starting, ", ")
	}
	if len(r.failing) > 0 {
		s += "; failing: " + strings.Join(r.failing, "; ")
	}
	return s
}

// awaitFunctions waits until every function can be called, or is known to fail,
// and says how that stands.
func (u *up) awaitFunctions(ctx context.Context) string {
	cf := clientFlags{Where: connect.Where{DataDir: u.f.dataDir}, project: "default", output: "text", source: "up"}
	callCtx, conn, err := cf.dial(ctx)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	admin := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: unixDialer(u.socket), DisableKeepAlives: true}}
	wait, cancel := context.WithTimeout(callCtx, functionsWait)
	defer cancel()
	// A deployment that comes at once would be told that nobody runs it.
	_ = until(wait, func(ctx context.Context) error {
		s, err := pb.NewProxyServiceClient(conn).GetStatus(ctx, &pb.GetStatusRequest{})
		if err == nil && s.GetRunnerCount() == 0 {
			err = errors.New("the runner is not connected yet")
		}
		return err
	})
	said := "not known yet: see `" + programName() + " fn ls`"
	_ = until(wait, func(ctx context.Context) error {
		r, err := functionReadiness(ctx, pb.NewFunctionServiceClient(conn), admin)
		switch {
		case err != nil && ctx.Err() != nil:
			return err // what was known before is worth more
		case err != nil:
			said = "not known yet: " + describeError(err)
			return err
		}
		said = r.String()
		if len(r.starting) > 0 {
			return errors.New(said)
		}
		return nil
	})
	return said
}

// functionReadiness asks the control plane for the functions and their condition,
// and Envoy for those that it can reach.
func functionReadiness(ctx context.Context, functions pb.FunctionServiceClient, admin *http.Client) (*readiness, error) {
	reachable, err := healthyFunctions(ctx, admin)
	if err != nil {
		return nil, err
	}
	r := &readiness{}
	for token := ""; ; {
		page, err := functions.ListFunctions(ctx, &pb.ListFunctionsRequest{Parent: "projects/default", PageSize: 1000, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, f := range page.GetFunctions() {
			r.add(f, reachable)
		}
		if token = page.GetNextPageToken(); token == "" {
			return r, nil
		}
	}
}

func (r *readiness) add(f *pb.Function, reachable map[string]bool) {
	short := f.GetName()[strings.LastIndexByte(f.GetName(), '/')+1:]
	c := readyCondition(f)
	// A function that no route uses is not known to Envoy at all.
	healthy, known := reachable[f.GetName()]
	switch {
	case c.GetOk() && (healthy || !known):
		r.ready++
		if c.GetReason() == reasonIdle {
			r.idle++
		}
	case c != nil && !c.GetOk() && !slices.Contains([]string{"InstancesStarting", "NoRunner", "Unknown"}, c.GetReason()):
		// A runner that is not connected yet is about to be: `up` started it.
		r.failing = append(r.failing, short+": "+shorten(c.GetMessage()))
	default:
		r.starting = append(r.starting, short)
	}
}

// readyCondition says whether a function can be called; nil when that is not told.
func readyCondition(f *pb.Function) *pb.Condition {
	for _, c := range f.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return c
		}
	}
	return nil
}

// reasonIdle is the reason of a ready function without an instance.
const reasonIdle = "Idle"

// healthyFunctions asks Envoy which functions have an endpoint that serves. A
// function is one or more clusters: its name, or its name@VERSION.
func healthyFunctions(ctx context.Context, admin *http.Client) (map[string]bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy/stats?filter=/functions/.*membership_healthy$", nil)
	if err != nil {
		return nil, err
	}
	res, err := admin.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	out := map[string]bool{}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if name, ok := strings.CutSuffix(name, ".membership_healthy"); ok {
			name, _, _ = strings.Cut(strings.TrimPrefix(name, "cluster."), "@")
			out[name] = out[name] || value != "0"
		}
	}
	return out, lines.Err()
}
