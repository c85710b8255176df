package access

import (
	"encoding/base64"
	"fmt"
	"testing"
)

// TestNewer: what a newer version stored of roles, bindings and tokens, and this one does
// not know in full, gives nobody a right.
func TestNewer(t *testing.T) {
	hash := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, c := range map[string]struct {
		key, value string
		taken      bool
	}{
		"role":             {rolePrefix + "a", `{"name":"a","permissions":[{"verbs":["read"],"kinds":["routes"]}]}`, true},
		"newer role":       {rolePrefix + "a", `{"name":"a","permissions":[{"verbs":["read"],"kinds":["routes"],"onlyOn":"Mondays"}]}`, false},
		"binding":          {bindingPrefix + "a", `{"subject":"user:a","grant":{"role":"viewer","project":"default"}}`, true},
		"newer binding":    {bindingPrefix + "a", `{"subject":"user:a","grant":{"role":"viewer","project":"default","until":"tomorrow"}}`, false},
		"token":            {tokenPrefix + "a", fmt.Sprintf(`{"token":{"name":"a"},"sha256":%q}`, hash), true},
		"newer token":      {tokenPrefix + "a", fmt.Sprintf(`{"token":{"name":"a","from":"10.0.0.0/8"},"sha256":%q}`, hash), false},
		"newer stored one": {tokenPrefix + "a", fmt.Sprintf(`{"token":{"name":"a"},"sha256":%q,"from":"10.0.0.0/8"}`, hash), false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPolicy()
			before := len(p.roles)
			err := p.take(c.key, []byte(c.value))
			if (err == nil) != c.taken {
				t.Errorf("error %v, want one: %t", err, !c.taken)
			}
			if got := len(p.roles) - before + len(p.bindings) + len(p.tokens); (got == 1) != c.taken {
				t.Errorf("%d are in force, want taken: %t", got, c.taken)
			}
		})
	}
}
