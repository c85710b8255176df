package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// devPoll is how often the folder is looked at. Polling sees what editors do on every
// file system, and a function has few files.
const devPoll = 100 * time.Millisecond

func newFnDevCommand() *cobra.Command {
	var cf clientFlags
	c := &cobra.Command{
		Use:   "dev [FOLDER]",
		Short: "Run a function from its folder, again at every save, and show its lines and where it fails",
		Long: "Deploys the folder as `penstock fn deploy` does, watches it, deploys again when a file is saved, and prints\n" +
			"what the function prints. A line that names a place in the folder is followed by what stands there.\n" +
			"It needs a running Penstock (penstock up).",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			ctx, client, err := cf.dialFn(cmd.Context())
			if err != nil {
				return err
			}
			defer client.conn.Close()
			s := &devSession{dir: dir, cf: cf, client: client, out: &lockedWriter{w: cmd.OutOrStdout()}}
			return s.run(ctx)
		},
	}
	cf.add(c)
	return c
}

// lockedWriter takes whole lines from several goroutines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// devSession is one `fn dev`.
type devSession struct {
	dir    string
	cf     clientFlags
	client *fnClient
	out    io.Writer
	digest string
	name   string
	// followed: the lines of the function are printed by now.
	followed bool
}

func (s *devSession) run(ctx context.Context) error {
	if info, err := os.Stat(s.dir); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is no folder", s.dir)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	last := ""
	tick := time.NewTicker(devPoll)
	defer tick.Stop()
	for {
		if now := fingerprint(s.dir); now != last {
			last = now
			began := time.Now()
			if err := s.deploy(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				// The next save may mend it.
				fmt.Fprintf(s.out, "! %s\n", strings.ReplaceAll(describeError(err), "\n", "\n  "))
			} else {
				fmt.Fprintf(s.out, "* %s serves %s after %.2f s\n", s.name, shortSource(s.digest), time.Since(began).Seconds())
			}
			if s.name != "" && !s.followed {
				s.followed = true
				name := s.name
				wg.Go(func() { s.follow(ctx, name) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// deploy deploys the folder as it is.
func (s *devSession) deploy(ctx context.Context) error {
	d, err := readDeployment(s.dir, s.cf.project, "")
	if err != nil {
		return err
	}
	if err := d.resolve(ctx, s.client, s.cf, splitFlags{percent: 100}); err != nil {
		return err
	}
	s.name, s.digest = d.function.GetName(), d.digest
	return d.deploy(ctx, s.out, s.client, &pb.WriteOptions{Message: "fn dev", WaitTimeout: durationpb.New(time.Minute)}, "")
}

// follow prints the lines of the function until ctx ends.
func (s *devSession) follow(ctx context.Context, name string) {
	for ctx.Err() == nil {
		stream, err := s.client.ops.StreamLogs(ctx, &pb.StreamLogsRequest{Name: name, Tail: -1, Follow: true})
		for err == nil {
			var m *pb.StreamLogsResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			for _, l := range m.GetLines() {
				printLine(s.out, l)
				if where := placeIn(s.dir, l.GetText()); where != "" {
					fmt.Fprintf(s.out, "    > %s\n", where)
				}
			}
		}
		if errors.Is(err, context.Canceled) {
			return
		}
		select { // the control plane went away: it is tried again
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// fingerprint changes when a file of a folder does.
func fingerprint(dir string) string {
	var b strings.Builder
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went while it was looked at
		}
		switch e.Name() {
		case ".git", "node_modules", "__pycache__", ".venv":
			return fs.SkipDir
		}
		if info, err := e.Info(); err == nil && !e.IsDir() && !strings.HasSuffix(path, "~") && !strings.HasSuffix(path, ".swp") {
			fmt.Fprintf(&b, "%s %d %d\n", path, info.Size(), info.ModTime().UnixNano())
		}
		return nil
	})
	return b.String()
}

// place finds "file.py", line 12 and file.js:12 in a line of a stack.
var place = regexp.MustCompile(`([^\s"'(]+\.(?:py|js|mjs|cjs|ts|go|rb|php))(?:", line |:)(\d+)`)

// placeIn is the source line that a line of output names, when it is one of the
// folder's: "app.py:12: return 1/0".
func placeIn(dir, text string) string {
	m := place.FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	number, err := strconv.Atoi(m[2])
	if err != nil {
		return ""
	}
	// The runner has its own copy of the folder: the longest end of the path that is
	// here is meant.
	parts := strings.Split(filepath.ToSlash(strings.TrimPrefix(m[1], "file://")), "/")
	for i := range parts {
		rel := strings.Join(parts[i:], "/")
		if !filepath.IsLocal(rel) {
			continue
		}
		if line, ok := lineOf(filepath.Join(dir, rel), number); ok {
			return fmt.Sprintf("%s:%d: %s", rel, number, strings.TrimSpace(line))
		}
	}
	return ""
}

// lineOf is one line of a file, counted from 1.
func lineOf(path string, number int) (string, bool) {
	f, err := os.Open(path)
	if err != nil {
		return "", false
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		if n == number {
			return s.Text(), true
		}
	}
	return "", false
}
