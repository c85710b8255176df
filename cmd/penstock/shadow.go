package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/penstock-gateway/penstock/internal/control"
	"github.com/penstock-gateway/penstock/internal/shadow"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// pinned is the value of --shadow-envoy that stands for the pinned Envoy.
const pinned = "pinned"

// shadowFlags are the flags of the shadow gate.
type shadowFlags struct {
	envoy, fail string
	limit       time.Duration
}

func (f *shadowFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.envoy, "shadow-envoy", "", "try each change on an Envoy of its own before proxies get it; =PATH names the binary, which must be the proxies' build (default the pinned one)")
	fl.Lookup("shadow-envoy").NoOptDefVal = pinned
	fl.DurationVar(&f.limit, "shadow-limit", shadow.DefaultLimit, "how long the shadow Envoy may take for one response before it counts as hung, 100ms to 1m")
	fl.StringVar(&f.fail, "shadow-fail", "open", "when the shadow Envoy cannot run: open lets changes through untried, closed holds them back")
}

// options are nil without --shadow-envoy.
func (f *shadowFlags) options(ctx context.Context) (*control.ShadowOptions, error) {
	if f.fail != "open" && f.fail != "closed" {
		return nil, fmt.Errorf("--shadow-fail %q is none of open, closed", f.fail)
	}
	if f.limit < 100*time.Millisecond || f.limit > time.Minute {
		return nil, fmt.Errorf("--shadow-limit %s: it must be from 100ms to 1m", f.limit)
	}
	if f.envoy == "" {
		return nil, nil
	}
	path := f.envoy
	if path == pinned {
		var err error
		if path, err = toolbox.Envoy(ctx, toolbox.Options{Progress: os.Stderr}); err != nil {
			return nil, fmt.Errorf("--shadow-envoy: %w", err)
		}
	} else if info, err := os.Stat(path); err != nil || info.IsDir() {
		return nil, fmt.Errorf("--shadow-envoy %s is not a program: give --shadow-envoy=PATH, or --shadow-envoy alone for the pinned Envoy", path)
	}
	return &control.ShadowOptions{Envoy: path, Limit: f.limit, Closed: f.fail == "closed"}, nil
}
