package api

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// seesAll reports whether a caller may see the state of all projects.
func (c *Caller) seesAll() bool { return c.MayReadProject("status", "*") }

// seen leaves out the proxies of projects that a caller may not see, and what the
// others say of objects that it may not see.
func seen(c *Caller, proxies []*pb.Proxy) []*pb.Proxy {
	if c.MayReadProject("proxies", "*") && c.seesAll() {
		return proxies
	}
	var out []*pb.Proxy
	for _, p := range proxies {
		// spiffe://penstock.local/proxy/{project}/{gateway}/{name}
		parts := strings.Split(p.GetIdentity(), "/")
		if len(parts) < 5 || !c.MayReadProject("proxies", parts[4]) {
			continue
		}
		q := proto.CloneOf(p)
		q.Problems = seenProblems(c, p.GetProblems())
		out = append(out, q)
	}
	return out
}

func seenProblems(c *Caller, all []*pb.ProxyProblem) []*pb.ProxyProblem {
	return slices.DeleteFunc(slices.Clone(all), func(p *pb.ProxyProblem) bool { return p.GetObject() == "" || !c.MayRead(p.GetObject()) })
}

// seenReport leaves out of a report what a caller may not see.
func seenReport(c *Caller, r *pb.ServingReport) *pb.ServingReport {
	if r == nil || c.seesAll() {
		return r
	}
	out := proto.CloneOf(r)
	out.Problems = seenProblems(c, r.GetProblems())
	return out
}

// seenStatus leaves out of the state of the whole what a caller may not see.
func seenStatus(c *Caller, s *pb.GetStatusResponse) *pb.GetStatusResponse {
	if c.seesAll() {
		return s
	}
	out := proto.CloneOf(s)
	out.Serving, out.Resources, out.Runners, out.LostRunners = seenReport(c, s.GetServing()), nil, nil, nil
	out.Instances = slices.DeleteFunc(out.Instances, func(i *pb.Instance) bool { return !c.MayRead(i.GetFunction()) })
	out.Problems = slices.DeleteFunc(out.Problems, func(p *pb.ObjectProblem) bool { return !c.MayRead(p.GetObject()) })
	return out
}

// SeenDiff leaves out of a difference the objects that a caller may not see, and all
// of what it means for proxies unless the caller sees all of it.
func SeenDiff(c *Caller, d *pb.DiffResponse) *pb.DiffResponse {
	n := len(d.GetChanges())
	d.Changes = slices.DeleteFunc(d.GetChanges(), func(ch *pb.Change) bool { return !c.MayRead(ch.GetName()) })
	d.Warnings = slices.DeleteFunc(d.GetWarnings(), func(w *pb.Warning) bool { return !c.MayRead(w.GetObject()) })
	if len(d.GetChanges()) < n {
		d.ProxyChanges = nil
	}
	return d
}
