package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/archive"
)

// functionFile describes the function in its folder, and what belongs to it, such as
// its route.
const functionFile = "function.yaml"

// uploadChunk is the size of the parts of a package.
const uploadChunk = 512 << 10

func newFnDeployCommand() *cobra.Command {
	var cf clientFlags
	var wf writeFlags
	var split splitFlags
	var name string
	c := &cobra.Command{
		Use:   "deploy [FOLDER|ZIP]",
		Short: "Upload a function's code and run it as a new version",
		Long: "FOLDER (default: this one) holds the code and " + functionFile + ", which describes the function and, if you like,\n" +
			"its routes. Its source is what is uploaded. Without " + functionFile + ", and for a ZIP without one, --name names a\n" +
			"function that is there, whose code is replaced. The command returns when the new version serves.",
		Example: "  penstock fn deploy ./hello\n  penstock fn deploy ./hello --split 10 --tag canary\n  penstock fn deploy handler.zip --name hello",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "."
			if len(args) > 0 {
				path = args[0]
			}
			ctx, client, err := cf.dialFn(cmd.Context())
			if err != nil {
				return err
			}
			defer client.conn.Close()
			d, err := readDeployment(path, cf.project, name)
			if err != nil {
				return err
			}
			if err := d.resolve(ctx, client, cf, split); err != nil {
				return err
			}
			return d.deploy(ctx, cmd.OutOrStdout(), client, wf.options(), cf.output)
		},
	}
	cf.add(c)
	wf.add(c)
	split.add(c)
	c.Flags().StringVar(&name, "name", "", "the function, when there is no "+functionFile)
	return c
}

// deployment is a package and the objects that go with it.
type deployment struct {
	dir      string // "" for a zip
	pack     []byte
	digest   string
	objects  []gateway.Object
	function *pb.Function // one of objects; nil: named is to be changed
	named    string
}

// readDeployment reads a folder or a zip.
func readDeployment(path, project, name string) (*deployment, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	d := &deployment{named: name}
	if info.IsDir() {
		if d.dir, err = filepath.Abs(path); err != nil {
			return nil, err
		}
		var b bytes.Buffer
		if err := archive.Pack(&b, path, func(name string) bool { return name == functionFile }); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		d.pack = b.Bytes()
	} else if d.pack, err = os.ReadFile(path); err != nil {
		return nil, err
	}
	if err := archive.Check(bytes.NewReader(d.pack), int64(len(d.pack)), archive.Default); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if d.digest, err = archive.Digest(bytes.NewReader(d.pack)); err != nil {
		return nil, err
	}
	if d.dir == "" {
		return d, nil
	}
	described := filepath.Join(path, functionFile)
	if _, err := os.Stat(described); errors.Is(err, os.ErrNotExist) {
		return d, nil
	}
	set, errs := file.Options{Project: project}.Load(described)
	if len(errs) > 0 {
		return nil, errs
	}
	for _, o := range set.Objects() {
		d.objects = append(d.objects, o)
		f, ok := o.(*pb.Function)
		if !ok {
			continue
		}
		if d.function != nil {
			return nil, fmt.Errorf("%s describes two functions; their code lies in folders of their own", described)
		}
		d.function = f
	}
	if d.function == nil {
		return nil, fmt.Errorf("%s describes no function", described)
	}
	return d, nil
}

// resolve finds the function that the package is for, and sets its source and
// traffic.
func (d *deployment) resolve(ctx context.Context, client *fnClient, cf clientFlags, split splitFlags) error {
	name := d.named
	if d.function != nil {
		name = d.function.GetName()
	}
	if name == "" {
		return fmt.Errorf("there is no %s: write one (see `penstock fn init`), or name a function that is there with --name", functionFile)
	}
	name, err := cf.functionName(name)
	if err != nil {
		return err
	}
	old, err := client.ops.DescribeFunction(ctx, &pb.DescribeFunctionRequest{Name: name})
	if err != nil && status.Code(err) != codes.NotFound {
		return err
	}
	if d.function == nil {
		if old == nil {
			return fmt.Errorf("%s does not exist, and there is no %s that describes it", name, functionFile)
		}
		d.function = old.GetFunction()
		d.function.Status, d.function.Metadata = nil, &pb.Metadata{Labels: d.function.GetMetadata().GetLabels(), Annotations: d.function.GetMetadata().GetAnnotations()}
		d.objects = append(d.objects, d.function)
		d.function.Traffic = nil
	}
	d.function.Source = d.digest
	current := int64(0)
	if v := old.GetVersions(); len(v) > 0 {
		current = v[0].GetNumber()
	}
	traffic, err := split.traffic(old.GetFunction(), current)
	if err == nil && len(d.function.GetTraffic()) == 0 {
		d.function.Traffic = traffic
	}
	return err
}

// deploy uploads and applies, and prints what it did as output says; with "" only
// warnings.
func (d *deployment) deploy(ctx context.Context, w io.Writer, client *fnClient, o *pb.WriteOptions, output string) error {
	up, err := d.upload(ctx, client)
	if err != nil {
		return err
	}
	if output == "text" {
		verb := "uploaded"
		if up.GetKnown() {
			verb = "known already"
		}
		fmt.Fprintf(w, "package %s… (%d kB) %s\n", d.digest[:len(archive.DigestPrefix)+12], (up.GetSize()+1023)/1024, verb)
	}
	req := &pb.ApplyRequest{Options: o}
	for _, object := range d.objects {
		req.Resources = append(req.Resources, gateway.ToResource(object))
	}
	told := func() {}
	if output == "text" {
		told = client.tellProgress(ctx, w, d.function.GetName())
	}
	resp, err := pb.NewConfigServiceClient(client.conn).Apply(ctx, req)
	told()
	if err != nil {
		return d.refused(err)
	}
	if output != "" {
		err := printWrite(w, output, resp, resp.GetResult(), resp.GetChanges(), o.GetValidateOnly())
		if output == "text" {
			printLastWords(w, resp.GetResult().GetServing(), d.function.GetName())
		}
		return err
	}
	printWarnings(w, resp.GetResult().GetWarnings())
	return resultError(resp.GetResult(), resp.GetChanges())
}

// refused adds to a refusal for want of a right what may be done about it: a deployer
// may write functions, and function.yaml may hold more.
func (d *deployment) refused(err error) error {
	var others []string
	for _, o := range d.objects {
		if _, function := o.(*pb.Function); !function {
			others = append(others, short(o.GetName()))
		}
	}
	if status.Code(err) != codes.PermissionDenied || len(others) == 0 {
		return err
	}
	return fmt.Errorf("%s\nnothing was deployed: the file holds %s, too. Have somebody who may write that apply it once; as long as it stays as it is, a deployment needs no right for it",
		describeError(err), strings.Join(others, ", "))
}

// tellProgress prints what the runner says of a function until stop is called: a build, or
// an installation, may take minutes. It says nothing where that cannot be asked.
func (c *fnClient) tellProgress(ctx context.Context, w io.Writer, name string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	began, done := timestamppb.Now(), make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			stream, err := c.ops.StreamLogs(ctx, &pb.StreamLogsRequest{Name: name, Since: began, Follow: true})
			for err == nil {
				var m *pb.StreamLogsResponse
				if m, err = stream.Recv(); err != nil {
					break
				}
				for _, l := range m.GetLines() {
					if l.GetStream() == "runner" && l.GetInstance() == "" {
						fmt.Fprintf(w, "  %s\n", firstLine(l.GetText()))
					}
				}
			}
			if status.Code(err) != codes.NotFound { // a new function is there when it is stored
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() { cancel(); <-done }
}

// printLastWords prints what a function printed before it ended, all that is known of it:
// the line above has only the reason.
func printLastWords(w io.Writer, s *pb.ServingReport, function string) {
	for _, p := range s.GetProblems() {
		_, output, found := strings.Cut(p.GetDetail(), lastOutput)
		if p.GetObject() != function || !found {
			continue
		}
		fmt.Fprintln(w, "  its last output:")
		for line := range strings.Lines(output) {
			if strings.Contains(line, awsAdvice) {
				continue
			}
			fmt.Fprintf(w, "    %s\n", strings.TrimRight(line, "\r\n"))
		}
	}
}

// lastOutput separates, in a reason, what was printed before.
const lastOutput = "; last output:\n"

func (d *deployment) upload(ctx context.Context, client *fnClient) (*pb.UploadPackageResponse, error) {
	stream, err := client.ops.UploadPackage(ctx)
	if err != nil {
		return nil, err
	}
	digest := d.digest
	for rest := d.pack; ; {
		n := min(len(rest), uploadChunk)
		// A server that knows the package answers at once; then Send says EOF.
		if err := stream.Send(&pb.UploadPackageRequest{Digest: digest, Chunk: rest[:n]}); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		} else if err != nil {
			break
		}
		digest, rest = "", rest[n:]
		if len(rest) == 0 {
			break
		}
	}
	return stream.CloseAndRecv()
}

// shortSource is a source in one word.
func shortSource(s string) string {
	if strings.HasPrefix(s, archive.DigestPrefix) {
		return s[:len(archive.DigestPrefix)+12] + "…"
	}
	return s
}
