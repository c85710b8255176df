package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// functionsWait is how long `up` holds back its table for functions that are
// still being built or started. The gateway serves meanwhile.
const functionsWait = 30 * time.Second

// awaitFunctions waits until every function has an instance that Envoy can reach,
// or is known to fail, and says how that stands.
func (u *up) awaitFunctions(ctx context.Context) string {
	cf := clientFlags{server: loopback(u.f.api), project: "default", output: "text"}
	callCtx, conn, err := cf.dial(ctx)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	admin := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: unixDialer(u.socket), DisableKeepAlives: true}}
	wait, cancel := context.WithTimeoutCause(callCtx, functionsWait, errors.New("they take long"))
	defer cancel()
	var said string
	_ = until(wait, func(ctx context.Context) error {
		starting, failing, total, err := functionStates(ctx, pb.NewFunctionServiceClient(conn), pb.NewProxyServiceClient(conn), admin)
		if err != nil {
			said = describeError(err)
			return err
		}
		said = ""
		if total > 0 {
			said = fmt.Sprintf("%d of %d ready", total-len(starting)-len(failing), total)
		}
		if len(failing) > 0 {
			said += "; failing: " + strings.Join(failing, ", ")
		}
		if len(starting) > 0 {
			said += "; starting: " + strings.Join(starting, ", ")
			return errors.New(said)
		}
		return nil
	})
	return said
}

// functionStates sorts the functions that are not ready.
func functionStates(ctx context.Context, fc pb.FunctionServiceClient, pc pb.ProxyServiceClient, admin *http.Client) (starting, failing []string, total int, err error) {
	functions, err := fc.ListFunctions(ctx, &pb.ListFunctionsRequest{Parent: "projects/default", PageSize: 1000})
	if err != nil {
		return nil, nil, 0, err
	}
	status, err := pc.GetStatus(ctx, &pb.GetStatusRequest{})
	if err != nil {
		return nil, nil, 0, err
	}
	states := map[string]map[pb.InstanceState]bool{}
	for _, i := range status.GetInstances() {
		if states[i.GetFunction()] == nil {
			states[i.GetFunction()] = map[pb.InstanceState]bool{}
		}
		states[i.GetFunction()][i.GetState()] = true
	}
	reachable, err := healthyMembers(ctx, admin)
	if err != nil {
		return nil, nil, 0, err
	}
	for _, f := range functions.GetFunctions() {
		short := f.GetName()[strings.LastIndexByte(f.GetName(), '/')+1:]
		// A function that no route uses is not known to Envoy at all.
		healthy, known := reachable[f.GetName()]
		switch s := states[f.GetName()]; {
		case s[pb.InstanceState_INSTANCE_STATE_READY] && (healthy || !known):
		case s[pb.InstanceState_INSTANCE_STATE_BACKOFF] && !s[pb.InstanceState_INSTANCE_STATE_READY]:
			failing = append(failing, short)
		default:
			starting = append(starting, short)
		}
	}
	return starting, failing, len(functions.GetFunctions()), nil
}

// healthyMembers asks Envoy which clusters of functions have an endpoint.
func healthyMembers(ctx context.Context, admin *http.Client) (map[string]bool, error) {
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
			out[strings.TrimPrefix(name, "cluster.")] = value != "0"
		}
	}
	return out, lines.Err()
}
