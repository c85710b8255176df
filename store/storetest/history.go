package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
)

// testObjectHistory compares the history of single objects with a model, over commits and
// rollbacks drawn at random, on pages of several sizes.
func testObjectHistory(t *testing.T, s store.Store) {
	ctx := t.Context()
	random := rand.New(rand.NewPCG(11, 1))
	const objects, revisions = 5, 40
	states := []map[string]string{{}}
	for head := int64(0); head < revisions; {
		var changes []store.Change
		next := map[string]string{}
		if head > 2 && random.IntN(8) == 0 {
			to := 1 + random.Int64N(head)
			rev := must[store.Revision](t)(s.Rollback(ctx, head, to, store.Info{}))
			if rev.Number > head {
				states = append(states, states[to])
			}
			head = rev.Number
			continue
		}
		for i := range objects {
			name := RouteName(i)
			value, there := states[head][name]
			switch random.IntN(6) {
			case 0:
				value, there = fmt.Sprint("v", random.IntN(3)), true
				changes = append(changes, Routes(i, 1, value)...)
			case 1:
				there = false
				changes = append(changes, Delete(name))
			}
			if there {
				next[name] = value
			}
		}
		rev := must[store.Revision](t)(s.Commit(ctx, head, changes, store.Info{Message: fmt.Sprint("commit on ", head)}))
		if rev.Number > head {
			states = append(states, next)
		}
		head = rev.Number
	}
	// One more than there are objects: no revision made anything of it.
	for i := range objects + 1 {
		var want []string
		for n := revisions; n > 0; n-- {
			before, was := states[n-1][RouteName(i)]
			after, is := states[n][RouteName(i)]
			if before != after || was != is {
				want = append(want, fmt.Sprintf("%d: %q -> %q", n, before, after))
			}
		}
		for _, limit := range []int{0, 1, 3, 1000} {
			var got []string
			for next, first := int64(0), true; first || next != 0; first = false {
				editions, more, err := s.History(ctx, RouteName(i), next, limit)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range editions {
					if e.Oldest || e.Damaged != "" {
						t.Errorf("%+v", e)
					}
					got = append(got, fmt.Sprintf("%d: %q -> %q", e.Revision.Number, shown(e.Before), shown(e.After)))
				}
				if limit > 0 && len(editions) > limit || more != 0 && next != 0 && more >= next {
					t.Fatalf("%d editions before %d, limit %d, then %d", len(editions), next, limit, more)
				}
				next = more
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s, %d a page:\n%q, want\n%q", RouteName(i), limit, got, want)
			}
		}
	}
}

// shown is the value of a resource, "" for none.
func shown(r *pb.Resource) string {
	if r == nil {
		return ""
	}
	return Value(r)
}
