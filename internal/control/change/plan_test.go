package change

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func planner() *Planner {
	return New(Params{
		Now:     func() time.Time { return time.Unix(1, 0) },
		Missing: func([]gateway.Object) []gateway.Problem { return nil },
	})
}

func anybody(t *testing.T) context.Context {
	return api.WithCaller(t.Context(), api.System("test"))
}

func answering(id string, status uint32) *pb.Route {
	return &pb.Route{Name: "projects/default/routes/" + id, Rules: []*pb.RouteRule{{
		Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: "/" + id}}}},
		Action:  &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: status}},
	}}}
}

func function(id string, instances uint32) *pb.Function {
	return &pb.Function{Name: "projects/default/functions/" + id, Source: "f", Instances: instances,
		Contract: &pb.Function_Server{Server: &pb.ServerContract{Command: []string{"x"}}}, Env: map[string]string{"N": fmt.Sprint(instances)}}
}

// written is what the users wrote of a state, by name: without versions, which are the
// server's.
func written(s *gateway.Snapshot) map[string]string {
	out := map[string]string{}
	for o := range s.All() {
		if _, version := o.(*pb.FunctionVersion); !version {
			out[o.GetName()] = o.GetMetadata().GetEtag()
		}
	}
	return out
}

// TestBecome: whatever was written, a rollback leads back to each state before, and then
// there is nothing left to do.
func TestBecome(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pl, ctx := planner(), anybody(t)
		states := []*gateway.Snapshot{policies.Model().Build(nil, 0, gateway.Changes{})}
		step := func(w *api.Write) *Plan {
			p, err := pl.Plan(ctx, states[len(states)-1], w)
			if err != nil {
				rt.Fatal(err)
			}
			states = append(states, p.Next)
			return p
		}
		for range rapid.IntRange(1, 6).Draw(rt, "writes") {
			w := &api.Write{Source: "test"}
			for i := range 3 {
				var o gateway.Object = answering(fmt.Sprint("r", i), rapid.Uint32Range(200, 202).Draw(rt, "status"))
				if i == 2 {
					o = function("f", rapid.Uint32Range(1, 3).Draw(rt, "instances"))
				}
				switch there := states[len(states)-1].Get(o.GetName()) != nil; {
				case rapid.Bool().Draw(rt, "write"):
					w.Mutations = append(w.Mutations, api.Mutation{Name: o.GetName(), Object: o})
				case there && rapid.Bool().Draw(rt, "delete"):
					w.Mutations = append(w.Mutations, api.Mutation{Mode: api.Delete, Name: o.GetName()})
				}
			}
			step(w)
		}
		target := states[rapid.IntRange(0, len(states)-1).Draw(rt, "target")]
		back, err := Become(states[len(states)-1], target, nil, "somebody", "rollback")
		if err != nil {
			rt.Fatal(err)
		}
		step(back)
		got, want := written(states[len(states)-1]), written(target)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			rt.Errorf("after the rollback %v, want %v", got, want)
		}
		again, err := Become(states[len(states)-1], target, nil, "somebody", "rollback")
		if err != nil || len(again.Mutations) != 0 {
			rt.Errorf("a second rollback writes %v, %v", again.Mutations, err)
		}
	})
}

// TestPreconditions: what a write expects of an object.
func TestPreconditions(t *testing.T) {
	pl, ctx := planner(), anybody(t)
	a := answering("a", 200)
	first, err := pl.Plan(ctx, policies.Model().Build(nil, 0, gateway.Changes{}), &api.Write{Mutations: []api.Mutation{{Mode: api.Create, Name: a.GetName(), Object: a}}})
	if err != nil {
		t.Fatal(err)
	}
	etag := first.Next.Get(a.GetName()).GetMetadata().GetEtag()
	for name, c := range map[string]struct {
		w    api.Write
		want codes.Code
	}{
		"create what is there":        {api.Write{Mutations: []api.Mutation{{Mode: api.Create, Name: a.GetName(), Object: a}}}, codes.AlreadyExists},
		"update what is not there":    {api.Write{Mutations: []api.Mutation{{Mode: api.Update, Name: "projects/default/routes/b", Object: answering("b", 200)}}}, codes.NotFound},
		"delete what is not there":    {api.Write{Mutations: []api.Mutation{{Mode: api.Delete, Name: "projects/default/routes/b"}}}, codes.NotFound},
		"another etag":                {api.Write{Mutations: []api.Mutation{{Name: a.GetName(), Object: a, Etag: "x"}}}, codes.Aborted},
		"an etag of what is not":      {api.Write{Mutations: []api.Mutation{{Name: "projects/default/routes/b", Object: answering("b", 200), Etag: "x"}}}, codes.Aborted},
		"another revision":            {api.Write{ExpectedRevision: 7, Mutations: []api.Mutation{{Name: a.GetName(), Object: a}}}, codes.Aborted},
		"one object twice":            {api.Write{Mutations: []api.Mutation{{Name: a.GetName(), Object: a}, {Name: a.GetName(), Object: a}}}, codes.InvalidArgument},
		"a version of a function":     {api.Write{Mutations: []api.Mutation{{Name: "projects/default/functions/f/versions/1", Object: &pb.FunctionVersion{}}}}, codes.InvalidArgument},
		"its own etag, and no change": {api.Write{Mutations: []api.Mutation{{Name: a.GetName(), Object: a, Etag: etag}}}, codes.OK},
	} {
		p, err := pl.Plan(ctx, first.Next, &c.w)
		if status.Code(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
		if c.want == codes.OK && (len(p.Changes) != 0 || p.Next != first.Next) {
			t.Errorf("%s: changes %v", name, p.Changes)
		}
	}
}
