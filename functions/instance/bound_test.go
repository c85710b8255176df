package instance

import (
	"net/http/httptest"
	"testing"
	"time"
)

// TestMore: how long an invocation may go on, by what has happened so far.
func TestMore(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d * time.Second) }
	const timeout, silence = 10 * time.Second, 100 * time.Second
	never := time.Time{}
	for name, c := range map[string]struct {
		rec  *recorder
		left time.Time
		want time.Duration
	}{
		"no answer":                       {&recorder{}, never, 0},
		"no answer, the caller is gone":   {&recorder{}, ago(1), 0},
		"its body still comes":            {&recorder{upload: &upload{last: ago(3)}}, never, 7 * time.Second},
		"its body has stopped":            {&recorder{upload: &upload{last: ago(11)}}, never, 0},
		"an answer of the shim":           {&recorder{begun: true, internal: true, moved: ago(1)}, never, 0},
		"flows":                           {&recorder{begun: true, moved: ago(1)}, never, timeout},
		"quiet for long":                  {&recorder{begun: true, moved: ago(95)}, never, 5 * time.Second},
		"quiet for too long":              {&recorder{begun: true, moved: ago(101)}, never, 0},
		"the caller takes little":         {&recorder{begun: true, writing: 1, moved: ago(4)}, never, 6 * time.Second},
		"the caller takes nothing":        {&recorder{begun: true, writing: 1, moved: ago(10)}, never, 0},
		"flows, the caller has just left": {&recorder{begun: true, moved: ago(1)}, now, timeout},
		"flows, the caller is long gone":  {&recorder{begun: true, moved: ago(1)}, ago(10), 0},
		"was given up":                    {&recorder{begun: true, moved: now, expired: true}, never, 0},
	} {
		c.rec.ResponseWriter = httptest.NewRecorder()
		if got := c.rec.more(now, c.left, timeout, silence); got != c.want {
			t.Errorf("%s: %s more, want %s", name, got, c.want)
		}
	}
}
