package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// errFailed is returned when a function answered with a status of 500 or above.
var errFailed = errors.New("the function failed")

func newFnInvokeCommand() *cobra.Command {
	var data, method, path, version string
	var headers []string
	var include bool
	c := fnVerb("invoke NAME", "Call a function, past all gateways and their policies", func(c *cobra.Command) {
		f := c.Flags()
		f.StringVarP(&data, "data", "d", "", "the body; @FILE reads it from a file, @- from standard input")
		f.StringVarP(&method, "method", "X", "", "default POST with a body, else GET")
		f.StringVar(&path, "path", "/", "path and query")
		f.StringArrayVarP(&headers, "header", "H", nil, "'name: value' (repeatable)")
		f.StringVar(&version, "version", "", "a tag, or the number of a version that gets requests")
		f.BoolVarP(&include, "include", "i", false, "print the status, the headers and how long it took")
	}, func(cmd *cobra.Command, ctx context.Context, client *fnClient, name string) error {
		body, err := readData(data, cmd.InOrStdin())
		if err != nil {
			return err
		}
		id := requestID()
		req := &pb.InvokeFunctionRequest{Name: name, Method: method, Path: path, Body: body, Version: version, Headers: []*pb.HttpHeader{{Name: "x-request-id", Value: id}}}
		for _, h := range headers {
			k, v, ok := strings.Cut(h, ":")
			if !ok {
				return fmt.Errorf("--header %q has no colon", h)
			}
			req.Headers = append(req.Headers, &pb.HttpHeader{Name: strings.TrimSpace(k), Value: strings.TrimSpace(v)})
		}
		resp, err := client.ops.InvokeFunction(ctx, req)
		if err != nil {
			return err
		}
		w := cmd.OutOrStdout()
		if include {
			fmt.Fprintf(w, "%d in %.1f ms, trace %s\n", resp.GetStatus(), resp.GetMilliseconds(), resp.GetTraceId())
			for _, h := range resp.GetHeaders() {
				fmt.Fprintf(w, "%s: %s\n", h.GetName(), h.GetValue())
			}
			fmt.Fprintln(w)
		}
		if _, err := w.Write(resp.GetBody()); err != nil {
			return err
		}
		if b := resp.GetBody(); len(b) > 0 && b[len(b)-1] != '\n' {
			fmt.Fprintln(w)
		}
		if resp.GetStatus() == http.StatusNotFound && !cmd.Flags().Changed("path") {
			client.tellRoutes(ctx, cmd.ErrOrStderr(), name)
		}
		if resp.GetStatus() < 500 {
			return nil
		}
		client.tellFailure(ctx, cmd.ErrOrStderr(), name, id, resp)
		return errFailed
	})
	return c
}

// tellRoutes says where a function app of Azure answers, of which each function has a route.
func (c *fnClient) tellRoutes(ctx context.Context, w io.Writer, name string) {
	f, err := pb.NewFunctionServiceClient(c.conn).GetFunction(ctx, &pb.GetFunctionRequest{Name: name})
	if err != nil || f.GetFunction().GetAzure() == nil || f.GetFunction().GetAzure().GetFunction() != "" {
		return
	}
	fmt.Fprintln(w, "a function app answers at the routes of its functions, such as --path /api/NAME, where NAME is the folder of a function.json")
}

// tellFailure prints what the author of a handler needs to find the fault.
func (c *fnClient) tellFailure(ctx context.Context, w io.Writer, name, id string, resp *pb.InvokeFunctionResponse) {
	fmt.Fprintf(w, "status %d, request %s, trace %s\n", resp.GetStatus(), id, resp.GetTraceId())
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := c.ops.StreamLogs(ctx, &pb.StreamLogsRequest{Name: name, RequestId: id})
	if err != nil {
		return
	}
	found := false
	for {
		m, err := stream.Recv()
		if err != nil {
			break
		}
		for _, l := range m.GetLines() {
			found = true
			fmt.Fprintf(w, "  %s\n", l.GetText())
		}
	}
	if !found {
		fmt.Fprintf(w, "it printed nothing for this request; all of its lines: penstock fn logs %s\n", name[strings.LastIndexByte(name, '/')+1:])
	}
}

func requestID() string { return strings.ToLower(rand.Text()) }

// readData is the body that --data means.
func readData(data string, in io.Reader) ([]byte, error) {
	from, isFile := strings.CutPrefix(data, "@")
	switch {
	case !isFile:
		return []byte(data), nil
	case from == "-":
		return io.ReadAll(in)
	}
	return os.ReadFile(from)
}

func newFnLogsCommand() *cobra.Command {
	var follow bool
	var tail int32
	var since time.Duration
	var request string
	return fnVerb("logs NAME", "Print what a function printed", func(c *cobra.Command) {
		c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what it prints next")
		c.Flags().Int32VarP(&tail, "tail", "n", 100, "how many of the last lines")
		c.Flags().DurationVar(&since, "since", 0, "only those of so long ago or later, such as 10m; all of them unless --tail says otherwise")
		c.Flags().StringVar(&request, "request", "", "only the lines of this request (x-request-id)")
	}, func(cmd *cobra.Command, ctx context.Context, client *fnClient, name string) error {
		if tail == 0 {
			tail = -1
		}
		output, err := cmd.Flags().GetString("output")
		if err != nil {
			return err
		}
		req := &pb.StreamLogsRequest{Name: name, Tail: tail, Follow: follow, RequestId: request}
		if since < 0 {
			return fmt.Errorf("--since %s is in the future: give how long ago, such as 10m", since)
		}
		if since > 0 {
			req.Since = timestamppb.New(time.Now().Add(-since))
			if !cmd.Flags().Changed("tail") {
				req.Tail = 0
			}
		}
		stream, err := client.ops.StreamLogs(ctx, req)
		if err != nil {
			return err
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) || cmd.Context().Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			var b bytes.Buffer
			for _, l := range m.GetLines() {
				if err := printLineAs(&b, output, l); err != nil {
					return err
				}
			}
			if _, err := cmd.OutOrStdout().Write(b.Bytes()); err != nil {
				return err
			}
		}
	})
}

// printLineAs prints a line as JSON in one line, as a YAML document, or for a person.
func printLineAs(b *bytes.Buffer, output string, l *pb.LogLine) error {
	switch output {
	case "json":
		line, err := file.MessageJSON(l, false)
		b.Write(line)
		return err
	case "yaml":
		b.WriteString("---\n")
		return printMessage(b, output, l)
	}
	printLine(b, l)
	return nil
}

// printLine prints "15:04:05.000 instance request text".
func printLine(w io.Writer, l *pb.LogLine) {
	id := l.GetRequestId()
	if len(id) > 8 {
		id = id[:8]
	}
	fmt.Fprintf(w, "%s %s", l.GetTime().AsTime().Local().Format("15:04:05.000"), l.GetInstance())
	if id != "" {
		fmt.Fprintf(w, " [%s]", id)
	}
	fmt.Fprintf(w, " %s\n", l.GetText())
}
