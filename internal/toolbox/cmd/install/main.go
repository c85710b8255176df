// Command install installs the named pinned tools (envoy, lambda, framework,
// framework-node, redis, jaeger, etcd; all when none is named) below .tools and prints
// their paths.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	names := os.Args[1:]
	if len(names) == 0 {
		names = []string{"envoy", "lambda", "framework", "framework-node", "redis", "jaeger", "etcd"}
	}
	if err := install(ctx, names); err != nil {
		fmt.Fprintln(os.Stderr, "install:", err)
		os.Exit(1)
	}
}

func install(ctx context.Context, names []string) error {
	o := toolbox.Options{Progress: os.Stderr}
	tools := map[string]func(context.Context, toolbox.Options) (string, error){
		"envoy": toolbox.Envoy, "lambda": toolbox.Lambda, "redis": toolbox.Redis, "jaeger": toolbox.Jaeger,
		"framework": toolbox.FrameworkPython, "framework-node": toolbox.FrameworkNode,
		"etcd": toolbox.Etcd,
	}
	for _, name := range names {
		if tools[name] == nil {
			return fmt.Errorf("unknown tool %q: the tools are envoy, lambda, framework, framework-node, redis, jaeger and etcd", name)
		}
	}
	for _, name := range names {
		path, err := tools[name](ctx, o)
		if err != nil {
			return err
		}
		fmt.Printf("%-16s%s\n", name, path)
	}
	return nil
}
