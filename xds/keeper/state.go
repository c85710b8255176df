package keeper

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/xds"
)

// state is the configuration that a proxy has acknowledged.
type state struct {
	types map[xds.Type]map[string]*entry
	bytes int64
	// contact is when the control plane was last there.
	contact time.Time
}

// entry is a resource.
type entry struct {
	version string
	body    *anypb.Any
	// unseen: the proxy that runs now was started after the one that acknowledged this,
	// and has not acknowledged it itself.
	unseen bool
}

func newState() *state { return &state{types: map[xds.Type]map[string]*entry{}} }

// replay makes the state that records lead to.
func replay(records []record) (*state, error) {
	s := newState()
	for _, r := range records {
		switch r.kind {
		case recordContact:
		case recordResources:
			var d discoveryv3.DeltaDiscoveryResponse
			if err := proto.Unmarshal(r.body, &d); err != nil {
				return nil, fmt.Errorf("a record is damaged: %w", err)
			}
			s.apply(&d)
		default:
			return nil, fmt.Errorf("a record is of kind %q, which this version of Penstock does not know", r.kind)
		}
		s.contact = r.time
	}
	return s, nil
}

// apply takes in what was acknowledged.
func (s *state) apply(d *discoveryv3.DeltaDiscoveryResponse) {
	t := xds.Type(d.GetTypeUrl())
	for _, r := range d.GetResources() {
		s.remove(t, r.GetName())
		if s.types[t] == nil {
			s.types[t] = map[string]*entry{}
		}
		s.types[t][r.GetName()] = &entry{version: r.GetVersion(), body: r.GetResource()}
		s.bytes += size(r.GetName(), r.GetResource())
	}
	for _, name := range d.GetRemovedResources() {
		s.remove(t, name)
	}
}

func (s *state) remove(t xds.Type, name string) bool {
	e := s.types[t][name]
	if e == nil {
		return false
	}
	delete(s.types[t], name)
	s.bytes -= size(name, e.body)
	return true
}

func size(name string, body *anypb.Any) int64 { return int64(len(name) + len(body.GetValue())) }

// len is the number of resources.
func (s *state) len() (n int) {
	for _, all := range s.types {
		n += len(all)
	}
	return n
}

// begin marks all of a type as not seen by the proxy that has begun to ask for it.
func (s *state) begin(t xds.Type) {
	for _, e := range s.types[t] {
		e.unseen = true
	}
}

// unseen are the names of a type that no running proxy has acknowledged.
func (s *state) unseen(t xds.Type) (names []string) {
	for name, e := range s.types[t] {
		if e.unseen {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// resume compares what a proxy says that it has with the state. missing are the names
// that it has in a version that is not kept, which must be sent again to be; gone those
// that are kept and that it does not have. What is unseen is neither: the proxy may be
// about to get it.
func (s *state) resume(t xds.Type, has map[string]string) (missing, gone []string) {
	all := s.types[t]
	for name, version := range has {
		if e := all[name]; e == nil || e.version != version {
			missing = append(missing, name)
		} else {
			e.unseen = false
		}
	}
	for name, e := range all {
		if version, ok := has[name]; ok && e.version != version || !ok && !e.unseen {
			gone = append(gone, name)
		}
	}
	slices.Sort(missing)
	slices.Sort(gone)
	return missing, gone
}

// generation is the state as what a delivery.Server sends.
func (s *state) generation() *xds.Generation {
	g := &xds.Generation{}
	for t, all := range s.types {
		for name, e := range all {
			r := xds.NewRaw(t, name, e.body.GetValue(), nil, nil)
			r.Version = e.version // what the proxy will tell the control plane that it has
			g.Set(r)
		}
	}
	return g
}

// records are what replay makes the state from.
func (s *state) records() iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		if !yield(record{kind: recordContact, time: s.contact}, nil) {
			return
		}
		for _, t := range slices.Sorted(maps.Keys(s.types)) {
			d, n := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(t)}, int64(0)
			flush := func() bool {
				b, err := marshalRecord(d)
				d, n = &discoveryv3.DeltaDiscoveryResponse{TypeUrl: string(t)}, 0
				return yield(record{kind: recordResources, time: s.contact, body: b}, err)
			}
			for _, name := range slices.Sorted(maps.Keys(s.types[t])) {
				e := s.types[t][name]
				d.Resources = append(d.Resources, &discoveryv3.Resource{Name: name, Version: e.version, Resource: e.body})
				if n += size(name, e.body); n >= recordLimit && !flush() {
					return
				}
			}
			if len(d.Resources) > 0 && !flush() {
				return
			}
		}
	}
}
