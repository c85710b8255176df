// Package compile turns a gateway.Snapshot into Envoy resources: one
// xds.Generation per view. It is pure: no store, no network, no clock.
package compile

import (
	"fmt"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

// AllGateways is the Gateway of a View that holds every gateway of its project.
const AllGateways = "-"

// View is what a group of proxies is to serve.
type View struct {
	// Project is the id of a project: "default".
	Project string
	// Gateway is the id of one gateway, or AllGateways.
	Gateway string
	// GRPC is for gRPC clients without a proxy: see grpc.go.
	GRPC bool
}

// grpcView ends the name of a view for gRPC clients.
const grpcView = "/grpc"

// String returns "project/gateway" or "project/gateway/grpc".
func (v View) String() string {
	if v.GRPC {
		return v.Project + "/" + v.Gateway + grpcView
	}
	return v.Project + "/" + v.Gateway
}

// ParseView reads what String wrote.
func ParseView(s string) (View, error) {
	s, isGRPC := strings.CutSuffix(s, grpcView)
	project, id, ok := strings.Cut(s, "/")
	if !ok || project == "" || id == "" || strings.Contains(id, "/") {
		return View{}, fmt.Errorf("view %q is not project/gateway, such as \"default/-\", or project/gateway/grpc", s)
	}
	return View{Project: project, Gateway: id, GRPC: isGRPC}, nil
}

// gateways are the full names of the gateways of the view.
func (v View) gateways(s *gateway.Snapshot) []*pb.Gateway {
	var out []*pb.Gateway
	for _, g := range s.Gateways() {
		if project, id := projectAndID(g.GetName()); project == v.Project && (v.Gateway == AllGateways || v.Gateway == id) {
			out = append(out, g)
		}
	}
	return out
}

// Endpoint is an IP address and a TCP port or, with port 0, the path of a Unix socket.
type Endpoint struct {
	Address string
	Port    uint32
	// Priority is 0 for what requests go to. Those of priority 1 get them while
	// there is none of priority 0 that can be reached, and retries.
	Priority uint32
}

// Settings are the parts of the installation that proxies have to know.
type Settings struct {
	// Limiters are the rate limit services (gRPC). Without one, limits behave as
	// if the limiter were down.
	Limiters []Endpoint
	// OTLP is the collector of traces (gRPC). Zero: no tracing.
	OTLP Endpoint
	// EagerHosts is how many hosts of a listener proxies hold from their start; see
	// eagerShare. 0 is DefaultEagerHosts, below 0 is none.
	EagerHosts int
}

func (s Settings) tracing() bool { return s.OTLP != Endpoint{} }

// Input is what one generation is made from.
type Input struct {
	Snapshot *gateway.Snapshot
	View     View
	// Instances returns the ready instances of a function by its full name, and
	// with priority 1 its activators, sorted by priority. It may be nil.
	Instances func(function string) []Endpoint
	// Previous is the generation that proxies may still have, nil when there is
	// none. What is shared by hosts and only they still use (JWT providers) stays in
	// the new one, so that a change of a policy refuses nobody on the way. Without
	// it such a change may answer 403 for some milliseconds.
	Previous *xds.Generation
	// Holds are the parts of hosts that proxies refuse, by HostKey: something else
	// stands in their place. It may be nil.
	Holds map[string]*Holds
	// Refused are the versions of clusters, and of endpoints, that proxies refuse and
	// have no version of from before. What would go there is answered with 503, so that
	// it holds back nothing beside it.
	Refused map[xds.Ref][]string
}

// holds are those of a host; nil for none.
func (in *Input) holds(h *gateway.Host) *Holds {
	if len(in.Holds) == 0 {
		return nil // most of the time, and there may be many hosts
	}
	return in.Holds[hostKey(h)]
}

// Compiler compiles the generations of a view one after another. It is not safe
// for concurrent use.
type Compiler struct {
	settings Settings
	state    *state
}

// New returns a Compiler with an empty cache.
func New(s Settings) *Compiler { return &Compiler{settings: s} }

// Compile makes the resources of a view. Its result depends on the input only;
// what the run before made is kept where its inputs are the same (a host by the
// pointer of its *gateway.Host), so a change costs what it changes. The generation
// shares what is unchanged with the one that the call before returned for the view.
//
// The problems are of objects that could not be compiled as they are; everything
// else is. Rules that cannot be served are answered with 503, never left out.
// References to objects that are not there are no problems here: see
// gateway.Snapshot.Problems.
func (c *Compiler) Compile(in Input) (*xds.Generation, []gateway.Problem) {
	if c.state == nil || c.state.view != in.View {
		c.state = newState(in.View, c.settings)
	}
	c.state.run++
	v := &view{
		state: c.state, settings: c.settings, in: in, out: edit(c.state.last, in.Snapshot.Revision()),
		changed: in.Snapshot.Changed(c.state.snapshot),
	}
	if in.View.GRPC {
		v.compileGRPC()
	} else {
		v.compile()
	}
	c.state.last, c.state.snapshot, c.state.holds = v.out.g, in.Snapshot, in.Holds
	return v.out.g, v.sortedProblems()
}
