// Package ports knows what `penstock up` listens on by default, and finds out whether
// ports can be had. It imports little, so that it is compiled before all else.
package ports

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Want is an address to listen on, with the flag that sets it.
type Want struct{ Flag, Address string }

// Defaults are the addresses of `penstock up`, IP:port, by their flags.
var Defaults = map[string]string{
	"gateway-listen": "127.0.0.1:8080",
	"api-listen":     "127.0.0.1:7400",
	"xds-listen":     "127.0.0.1:7401",
	"http-listen":    "127.0.0.1:7480",
}

// Check listens on every address for a moment and returns what cannot be had, all
// problems at once.
func Check(ctx context.Context, wants []Want) error {
	var errs []error
	taken := map[string]string{}
	for _, w := range wants {
		_, port, _ := net.SplitHostPort(w.Address)
		if other, ok := taken[port]; ok {
			errs = append(errs, fmt.Errorf("--%s and --%s both want port %s", other, w.Flag, port))
			continue
		}
		taken[port] = w.Flag
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", w.Address)
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("--%s %s: no interface of this machine has that address", w.Flag, w.Address))
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("port %s is not free (%w): stop what uses it, or choose another with --%s", port, cause(err), w.Flag))
			continue
		}
		// Kept until all are checked, and closed before the children want them.
		defer l.Close()
	}
	return errors.Join(errs...)
}

// cause is the innermost error: "address already in use" without its wrapping.
func cause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
