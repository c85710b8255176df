package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
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
			"what the function prints. A line that names a place in the code is followed by what stood there in the\n" +
			"version that printed it. What every start repeats is shown once. It needs a running Penstock (penstock up),\n" +
			"and waits for one.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			out := &lockedWriter{w: cmd.OutOrStdout()}
			ctx, client, err := cf.awaitFn(cmd.Context(), out)
			if client == nil {
				return err
			}
			defer client.conn.Close()
			s := &devSession{dir: dir, cf: cf, client: client, out: out, log: newDevLog(out)}
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

// awaitFn connects to a control plane, and waits for one when there is none; without a
// client, ctx has ended.
func (f *clientFlags) awaitFn(ctx context.Context, out io.Writer) (context.Context, *fnClient, error) {
	for said := false; ; said = true {
		callCtx, client, err := f.dialFn(ctx)
		if err == nil {
			_, err = client.ListFunctions(callCtx, &pb.ListFunctionsRequest{Parent: "projects/" + f.project, PageSize: 1})
			if status.Code(err) != codes.Unavailable {
				return callCtx, client, nil // whatever else is wrong is told at the deployment
			}
			client.conn.Close()
		} else if !errors.Is(err, connect.ErrNone) {
			return ctx, nil, err
		}
		if ctx.Err() != nil {
			return ctx, nil, nil
		}
		if !said {
			sayAway(out, err)
		}
		if !sleep(ctx, devRetry) {
			return ctx, nil, nil
		}
	}
}

// sayAway says that the control plane is waited for.
func sayAway(out io.Writer, err error) {
	fmt.Fprintf(out, "! %s\n  waiting for it: `penstock up` in another terminal starts one\n", describeError(err))
}

// devSession is one `fn dev`.
type devSession struct {
	dir    string
	cf     clientFlags
	client *fnClient
	out    io.Writer
	log    *devLog
	name   string
	// good is the number of the version that served last; 0: not known.
	good int64
	// failed: the newest version does not run, as far as was known at the time asked.
	failed bool
	asked  time.Time
	// followed: the lines of the function are printed by now.
	followed bool
}

// devRetry is how often a control plane that does not answer is asked again.
const devRetry = time.Second

func (s *devSession) run(ctx context.Context) error {
	if info, err := os.Stat(s.dir); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is not a folder", s.dir)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	last, seen, away := "", "", false
	tick := time.NewTicker(devPoll)
	defer tick.Stop()
	for {
		// What changes between two looks is being written: half a file is not a version.
		now := fingerprint(s.dir)
		whole := last == "" || now == seen
		seen = now
		if now != last && whole {
			began := time.Now()
			err := s.deploy(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case status.Code(err) == codes.Unavailable:
				if !away {
					sayAway(s.out, err)
				}
				away = true
				if !sleep(ctx, devRetry) {
					return nil
				}
				continue
			}
			last, away = now, false
			took := time.Since(began)
			if s.name != "" && !s.followed {
				s.followed = true
				name, listening := s.name, make(chan struct{})
				wg.Go(func() { s.follow(ctx, name, sync.OnceFunc(func() { close(listening) })) })
				<-listening // whoever reads that it serves may call it at once
			}
			s.tell(ctx, err, took)
		}
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if s.failed && now.Sub(s.asked) > devRetry {
				s.asked = now
				s.again(ctx)
			}
		}
	}
}

// again says that a version serves after all: a runner came, or a build was repeated.
func (s *devSession) again(ctx context.Context) {
	d, err := s.client.ops.DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: s.name})
	if err != nil {
		return // it is asked again
	}
	for _, c := range d.GetFunction().GetStatus().GetConditions() {
		if c.GetType() == "Ready" && c.GetOk() {
			s.failed, s.good = false, d.GetCurrentVersion()
			fmt.Fprintf(s.out, "* %s serves version %d now\n", short(s.name), s.good)
		}
	}
}

// sleep waits; it is false when ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
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
	s.name = d.function.GetName()
	s.log.add(d.digest, d.pack)
	return d.deploy(ctx, s.out, s.client, &pb.WriteOptions{Message: "fn dev", WaitTimeout: durationpb.New(time.Minute)}, "")
}

// tell says how a deployment went, and what answers now.
func (s *devSession) tell(ctx context.Context, failed error, took time.Duration) {
	if failed != nil && !errors.Is(failed, errNotServing) {
		// The next save may mend it.
		fmt.Fprintf(s.out, "! %s\n", strings.ReplaceAll(describeError(failed), "\n", "\n  "))
		return
	}
	d, err := s.client.ops.DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: s.name})
	if err != nil {
		fmt.Fprintf(s.out, "! %s\n", describeError(err))
		return
	}
	number := d.GetCurrentVersion()
	s.failed, s.asked = failed != nil, time.Now()
	if failed == nil {
		s.good = number
		fmt.Fprintf(s.out, "* %s serves version %d after %.2f s\n", short(s.name), number, took.Seconds())
		return
	}
	reason := summary(d.GetFunction())
	for _, i := range d.GetInstances() {
		reason = cmp.Or(i.GetMessage(), reason)
	}
	s.log.mark(fmt.Sprintf("! %s cannot run version %d: %s", short(s.name), number, shorten(reason)), d.GetFunction().GetSource())
	switch answers := slices.ContainsFunc(d.GetInstances(), func(i *pb.Instance) bool {
		return i.GetState() == pb.InstanceState_INSTANCE_STATE_READY
	}); {
	case answers && s.good != 0 && s.good != number:
		fmt.Fprintf(s.out, "  version %d still answers meanwhile\n", s.good)
	case answers:
		fmt.Fprintln(s.out, "  the version before still answers meanwhile")
	default:
		fmt.Fprintln(s.out, "  callers get 503 with the reason until it is mended")
	}
}

// follow prints the lines of the function until ctx ends. It calls listening once it will
// miss none, or cannot listen yet.
func (s *devSession) follow(ctx context.Context, name string, listening func()) {
	defer listening()
	for ctx.Err() == nil {
		stream, err := s.client.ops.StreamLogs(ctx, &pb.StreamLogsRequest{Name: name, Tail: -1, Follow: true})
		if err == nil {
			_, err = stream.Header()
		}
		listening()
		for err == nil {
			var m *pb.StreamLogsResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			for _, l := range m.GetLines() {
				s.log.line(l)
			}
		}
		if errors.Is(err, context.Canceled) || !sleep(ctx, devRetry) { // the control plane went away: it is tried again
			return
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
