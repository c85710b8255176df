package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

func newTraceCommand() *cobra.Command {
	var from traceFlags
	var output string
	var wait time.Duration
	c := &cobra.Command{
		Use:   "trace ID",
		Short: "Print the spans of one request as a tree (the id is in the response header x-trace-id)",
		Long: "Shows who did what for how long, and in words what Envoy notes of a request that went wrong (its response\n" +
			"flags), with the endpoint that failed. With -o json or yaml it is what Jaeger keeps. Who asks needs the right to\n" +
			"\"read traces\" in all projects. `penstock trace web` shows the newest traces in a browser.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if !traceID.MatchString(args[0]) {
				return fmt.Errorf("%q is not a trace id: 32 hexadecimal digits, as in the response header x-trace-id", args[0])
			}
			ctx, cancel := contextWithTimeout(cmd.Context(), wait)
			defer cancel()
			t, err := findTrace(ctx, from.get, args[0])
			if err != nil {
				return err
			}
			if output != "text" {
				return printTraceAs(cmd.OutOrStdout(), output, t)
			}
			printTrace(cmd.OutOrStdout(), t)
			return nil
		},
	}
	from.add(c)
	c.Flags().DurationVar(&wait, "wait-timeout", 10*time.Second, "how long to wait for spans that are still on their way")
	c.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	c.AddCommand(newTraceWebCommand())
	return c
}

// traceFlags say who is asked for traces.
type traceFlags struct {
	httpFlags
	jaeger string
}

func (f *traceFlags) add(c *cobra.Command) {
	f.httpFlags.add(c)
	c.Flags().StringVar(&f.jaeger, "jaeger", "", "address of a Jaeger of your own (query API, http://HOST:PORT) to ask in place of the control plane")
}

// get asks a question of Jaeger's query API: path begins with /api/.
func (f *traceFlags) get(ctx context.Context, path string) (*http.Response, error) {
	if f.jaeger == "" {
		return f.call(ctx, http.MethodGet, "/traces"+path)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(f.jaeger, "/")+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("Jaeger does not answer: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	return nil, &refusedCall{status: resp.StatusCode, text: fmt.Sprintf("Jaeger answers %s: %.200s", resp.Status, body)}
}

func printTraceAs(w io.Writer, output string, t *trace) error {
	b, err := json.MarshalIndent(t, "", "  ")
	if err == nil && output == "yaml" {
		var v any
		if err = json.Unmarshal(b, &v); err == nil {
			b, err = yaml.Marshal(v)
		}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", bytes.TrimRight(b, "\n"))
	return err
}

var traceID = regexp.MustCompile(`^[0-9a-f]{32}$`)

func contextWithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// trace is the answer of Jaeger's query API, as far as it is shown.
type trace struct {
	Spans     []*span            `json:"spans"`
	Processes map[string]process `json:"processes"`
}

type process struct {
	ServiceName string `json:"serviceName"`
}

type span struct {
	SpanID     string `json:"spanID"`
	Operation  string `json:"operationName"`
	References []struct {
		SpanID string `json:"spanID"`
	} `json:"references"`
	StartTime int64  `json:"startTime"` // microseconds since the epoch
	Duration  int64  `json:"duration"`  // microseconds
	Tags      []tag  `json:"tags"`
	ProcessID string `json:"processID"`
}

type tag struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
}

func (s *span) parent() string {
	if len(s.References) == 0 {
		return ""
	}
	return s.References[0].SpanID
}

// settle is how long no new span may have come before a trace is taken as whole.
// Its spans come from several processes, each in batches of its own.
const settle = 1500 * time.Millisecond

// findTrace asks until the trace is whole: every parent is there, and nothing new
// has come for a while.
func findTrace(ctx context.Context, get askJaeger, id string) (*trace, error) {
	var found *trace
	var changed time.Time
	for {
		t, err := queryTrace(ctx, get, id)
		switch {
		case err != nil && ctx.Err() == nil:
			return nil, err
		case t != nil && (found == nil || len(t.Spans) != len(found.Spans)):
			found, changed = t, time.Now()
		case t != nil && t.whole() && time.Since(changed) > settle:
			return t, nil
		}
		select {
		case <-ctx.Done():
			if found != nil {
				return found, nil
			}
			return nil, fmt.Errorf("Jaeger has no trace %s: is the id right? (spans arrive within a second; `penstock status` says whether Jaeger has joined)", id)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (t *trace) whole() bool {
	have := map[string]bool{}
	for _, s := range t.Spans {
		have[s.SpanID] = true
	}
	roots := 0
	for _, s := range t.Spans {
		if !have[s.parent()] {
			roots++
		}
	}
	return roots == 1
}

// askJaeger asks a question of Jaeger's query API.
type askJaeger func(ctx context.Context, path string) (*http.Response, error)

func queryTrace(ctx context.Context, get askJaeger, id string) (*trace, error) {
	resp, err := get(ctx, "/api/traces/"+id)
	if refused := new(refusedCall); errors.As(err, &refused) && refused.status == http.StatusNotFound && !refused.problem {
		return nil, nil // Jaeger's word, not the control plane's
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data []*trace `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("cannot read Jaeger's answer: %w", err)
	}
	if len(answer.Data) == 0 {
		return nil, nil
	}
	if len(answer.Data[0].Spans) == 0 {
		return nil, errors.New("Jaeger knows the trace but has no spans of it")
	}
	return answer.Data[0], nil
}

// shownTags are the attributes that say why a span went as it did.
var shownTags = []string{
	"http.status_code", "http.response.status_code", "response_flags", "upstream_cluster", "upstream_address", "penstock.route",
	"ratelimit.decision", "ratelimit.limit", "ratelimit.remaining", "ratelimit.backend",
	"faas.name", "faas.instance", "faas.coldstart", "error", "otel.status_description",
}

func printTrace(w io.Writer, t *trace) {
	slices.SortFunc(t.Spans, func(a, b *span) int { return int(a.StartTime - b.StartTime) })
	children := map[string][]*span{}
	have := map[string]bool{}
	for _, s := range t.Spans {
		have[s.SpanID] = true
	}
	for _, s := range t.Spans {
		p := s.parent()
		if !have[p] {
			p = "" // its parent is the client's own span, which we do not have
		}
		children[p] = append(children[p], s)
	}
	start := t.Spans[0].StartTime
	// Functions make spans of their own: some may have one id, or be their own parents.
	printed := map[*span]bool{}
	var walk func(s *span, indent, branch, below string)
	walk = func(s *span, indent, branch, below string) {
		if printed[s] {
			return
		}
		printed[s] = true
		fmt.Fprintf(w, "%8s %9s  %s%s%s: %s%s\n", "+"+ms(s.StartTime-start), ms(s.Duration), indent, branch,
			t.Processes[s.ProcessID].ServiceName, s.Operation, tags(s))
		kids := children[s.SpanID]
		for i, k := range kids {
			if i == len(kids)-1 {
				walk(k, indent+below, "└─ ", "   ")
			} else {
				walk(k, indent+below, "├─ ", "│  ")
			}
		}
	}
	fmt.Fprintf(w, "%8s %9s  span\n", "start", "duration")
	for _, root := range slices.Concat(children[""], t.Spans) {
		walk(root, "", "", "")
	}
}

func ms(us int64) string { return fmt.Sprintf("%.2fms", float64(us)/1000) }

// tags are the attributes of a span that are shown, in words where they are none.
func tags(s *span) string {
	values := map[string]string{}
	for _, t := range s.Tags {
		v := fmt.Sprint(t.Value)
		if values[t.Key] == "" && v != "" && v != "-" && v != "false" {
			values[t.Key] = v // Envoy and the collector each have their "error"
		}
	}
	var out []string
	for _, key := range shownTags {
		v := values[key]
		switch {
		case v == "":
		case key == "response_flags":
			out = append(out, key+"="+v+" ("+flagWords(v)+")")
		case key == "upstream_address":
			if values["error"] != "" { // which of the endpoints it was
				out = append(out, "endpoint="+v)
			}
		default:
			out = append(out, key+"="+v)
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "  [" + strings.Join(out, " ") + "]"
}
