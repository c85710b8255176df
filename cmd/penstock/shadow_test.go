package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

func TestShadowFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"none":        {nil, ""},
		"no such way": {[]string{"--shadow-fail", "maybe"}, "none of open, closed"},
		"no time":     {[]string{"--shadow-limit", "1ms"}, "100ms to 1m"},
		"no program":  {[]string{"--shadow-envoy=" + file}, "is not a program"},
	} {
		var f shadowFlags
		fl := pflag.NewFlagSet("t", pflag.ContinueOnError)
		f.add(fl)
		if err := fl.Parse(c.args); err != nil {
			t.Fatal(err)
		}
		o, err := f.options(t.Context())
		if o != nil || (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v %v", name, o, err)
		}
	}
	var f shadowFlags
	fl := pflag.NewFlagSet("t", pflag.ContinueOnError)
	f.add(fl)
	path, err := toolbox.Envoy(t.Context(), toolbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for arg, want := range map[string]string{"--shadow-envoy=/bin/sh": "/bin/sh", "--shadow-envoy": path} {
		if err := fl.Parse([]string{arg, "--shadow-fail=closed"}); err != nil {
			t.Fatal(err)
		}
		if o, err := f.options(t.Context()); err != nil || o.Envoy != want || !o.Closed || o.Limit != 5*time.Second {
			t.Errorf("%s: %+v %v", arg, o, err)
		}
	}
}
