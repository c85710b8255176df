package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
)

// often is how often the state of a build is said.
const often = 5 * time.Second

const target = "./cmd/penstock"

// build builds Penstock and says how far it is. It is quick when nothing changed.
func build(ctx context.Context, out *lines) error {
	p := &progress{}
	if _, err := os.Stat(binary); err != nil {
		out.say("building Penstock: on two cores about two minutes the first time, and up to another two to fetch its modules; later seconds")
		// Fetches the modules, and says how many packages there are to build.
		list, err := p.run(ctx, out, "list", "-deps", target)
		if err != nil {
			return err
		}
		p.set(strings.Count(string(list), "\n"))
	}
	if _, err := p.run(ctx, out, "build", "-v", "-ldflags", "-s -w", "-o", binary, target); err != nil {
		return err
	}
	if built := p.state(); built != "" {
		out.say("Penstock is built")
	}
	return nil
}

// progress counts what the Go tool says it does.
type progress struct {
	mu                       sync.Mutex
	modules, packages, total int
	last                     []string // lines that are not progress: errors
}

func (p *progress) set(total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total = total
}

// state is how far it is; "" when nothing was to be done.
func (p *progress) state() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.packages > 0 && p.total > 0:
		return fmt.Sprintf("building Penstock: %d of at most %d packages", p.packages, p.total)
	case p.packages > 0:
		return fmt.Sprintf("building Penstock: %d packages", p.packages)
	case p.modules > 0:
		return fmt.Sprintf("fetching Go modules: %d so far", p.modules)
	}
	return ""
}

// read counts lines of the Go tool: "go: downloading MODULE VERSION", and with -v the
// path of each package as it is built.
func (p *progress) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		p.mu.Lock()
		switch {
		case strings.HasPrefix(line, "go: downloading "):
			p.modules++
		case line != "" && !strings.HasPrefix(line, "#") && !strings.ContainsAny(line, " \t:"):
			p.packages++
		default:
			p.last = append(p.last, line)
		}
		p.mu.Unlock()
	}
}

// run runs the Go tool, in a group that dies with this process, and returns its
// standard output.
func (p *progress) run(ctx context.Context, out *lines, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.Stderr = w
	var reading sync.WaitGroup
	reading.Go(func() { p.read(r) })
	ended := make(chan struct{})
	reading.Go(func() {
		tick := time.NewTicker(often)
		defer tick.Stop()
		for said := ""; ; {
			select {
			case <-ended:
				return
			case <-tick.C:
				s := p.state()
				if s == said && s != "" {
					s += ", still at it" // linking, or a large package
				}
				if s != "" {
					out.say("%s", s)
					said = p.state()
				}
			}
		}
	})
	err = launch.Run(cmd)
	w.Close()
	close(ended)
	reading.Wait()
	if ctx.Err() != nil {
		return nil, errors.New("stopped")
	}
	if err != nil {
		return nil, fmt.Errorf("go %s failed (%w):\n%s", strings.Join(args, " "), err, strings.Join(p.last, "\n"))
	}
	return stdout.Bytes(), nil
}
