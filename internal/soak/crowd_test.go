package soak

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// crowdRules are so many that their host is laid out as a tree, and crowdLocked of
// them have a policy of their own: more than any bound on what is kept of a filter
// that is replaced.
const (
	crowdRules  = 250
	crowdLocked = 90
)

// crowdPath is the path of a rule.
func crowdPath(i int) string { return fmt.Sprintf("/crowd-%d", i) }

// crowd adds a host with many rules, of which some are called.
func (w *world) crowd(t *testing.T) []string {
	for _, i := range []int{0, 17, 64, crowdLocked - 1, crowdLocked, crowdRules - 1} {
		m := &moving{id: fmt.Sprint("crowd-", i), gateway: "edge", backend: "still", servers: []int{0}}
		m.target.name, m.host, m.path, m.token = m.id, "crowd.test", crowdPath(i), w.token(t, 0)
		m.begin(answer{servers: []string{"u0"}})
		w.fixed = append(w.fixed, m)
	}
	return []string{crowdYAML(0)}
}

// crowdYAML is the route of the crowd, whose rules have other policies for another
// n.
func crowdYAML(n int) string {
	var b strings.Builder
	b.WriteString("kind: Route\nname: crowd\ngateways: [edge]\nhostnames: [crowd.test]\nrules:\n")
	for i := range crowdRules {
		policies := ""
		if i < crowdLocked {
			policies = fmt.Sprintf(`, policies: {authentication: {jwt: {issuer: "https://issuer.test", audiences: [app, "crowd-%d-%d"], jwks_secret: keys}}}`, n, i)
		}
		fmt.Fprintf(&b, "- {name: r%d, matches: [{path: {prefix: %s}}], forward: {backends: [{backend: still}]}%s}\n", i, crowdPath(i), policies)
	}
	return b.String()
}

// changeCrowd replaces all policies of the crowd at once.
func (c *churn) changeCrowd(t *testing.T) { c.apply(t, crowdYAML(c.number)) }

// hurryAuthentication changes the policies of several routes without waiting, so
// that proxies follow with more than one change at once, and waits for the last.
func (c *churn) hurryAuthentication(t *testing.T) {
	for range 2 + c.rand.IntN(5) {
		c.policies++
		c.guarded.policies = jwtPolicy(c.policies, []string{"", "consumers: [alice]", "optional: true"}[c.rand.IntN(3)])
		if _, err := c.config.Apply(t.Context(), &pb.ApplyRequest{
			Resources: resources(t, c.guarded.route()), Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE},
		}); err != nil {
			t.Fatalf("change %d: %v", c.number, err)
		}
	}
	c.changeAuthentication(t)
}

// manyAuthentications has several writers change policies at the same time, one
// after the other each, so that there is hardly a moment without a change under way.
func (c *churn) manyAuthentications(t *testing.T) {
	type writer struct {
		id   string
		docs []string
		err  error
	}
	writers := []*writer{{id: "guarded"}, {id: "locked-edge"}, {id: "locked-wide"}}
	for _, w := range writers {
		for _, m := range c.fixed {
			if m.id != w.id {
				continue
			}
			for range 3 {
				c.policies++
				m.policies = jwtPolicy(c.policies, "")
				w.docs = append(w.docs, m.route())
			}
		}
	}
	var wg sync.WaitGroup
	for _, w := range writers {
		var all [][]*pb.Resource
		for _, doc := range w.docs {
			all = append(all, resources(t, doc))
		}
		wg.Go(func() {
			for _, one := range all {
				if w.err == nil {
					w.err = c.try(t.Context(), one)
				}
			}
		})
	}
	wg.Wait()
	for _, w := range writers {
		if w.err != nil {
			t.Fatalf("change %d: %s: %v", c.number, w.id, w.err)
		}
	}
}
