package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newQuarantineCommand shows what proxies refused, and has it tried again.
func newQuarantineCommand() *cobra.Command {
	var hf httpFlags
	var output string
	var all bool
	c := &cobra.Command{
		Use:   "quarantine",
		Short: "See what proxies refused and what serves in its place, and have it tried again",
	}
	c.PersistentFlags().StringVarP(&output, "output", "o", "text", "text or json")
	list := &cobra.Command{
		Use: "list", Short: "List the resources in quarantine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return quarantineCall(cmd.Context(), cmd.OutOrStdout(), output, &hf, http.MethodGet, "/debug/quarantine")
		},
	}
	retry := &cobra.Command{
		Use: "retry OBJECT|TYPE/RESOURCE", Short: "Send a refused resource to the proxies again",
		Example: "  penstock quarantine retry backends/b\n  penstock quarantine retry --all",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == all {
				return errors.New("name one object or resource, or give --all")
			}
			form := url.Values{"all": {fmt.Sprint(all)}}
			if !all {
				form = url.Values{"name": args}
			}
			return quarantineCall(cmd.Context(), cmd.OutOrStdout(), output, &hf, http.MethodPost, "/debug/quarantine/retry?"+form.Encode())
		},
	}
	retry.Flags().BoolVar(&all, "all", false, "everything that is in quarantine")
	hf.add(list)
	hf.add(retry)
	c.AddCommand(list, retry)
	return c
}

// quarantined is a line of /debug/quarantine.
type quarantined struct {
	Object, Field, Resource, View, State string
	Since                                time.Time
	Serves                               bool  `json:"last_good_serves"`
	Revision                             int64 `json:"last_good_revision"`
	Refused                              []struct{ Version, Reason, Proxy, Envoy string }
}

func quarantineCall(ctx context.Context, w io.Writer, output string, hf *httpFlags, method, path string) error {
	if output != "text" && output != "json" {
		return fmt.Errorf("--output %q is none of text, json", output)
	}
	resp, err := hf.call(ctx, method, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if output == "json" {
		_, err := io.Copy(w, resp.Body)
		return err
	}
	d := json.NewDecoder(resp.Body)
	var broken error
	table(w, "OBJECT RESOURCE VIEW STATE SINCE SERVES-INSTEAD REASON", func(row func(...any)) {
		for d.More() {
			var q quarantined
			if broken = d.Decode(&q); broken != nil {
				return
			}
			row(q.object(), q.Resource, q.View, q.State, q.Since.Local().Format(time.DateTime), q.instead(), q.reason())
		}
	})
	if broken != nil {
		return fmt.Errorf("the answer cannot be read: %w", broken)
	}
	return nil
}

// object names what is quarantined, with the field where a part of it is.
func (q *quarantined) object() string {
	if q.Field == "" {
		return short(q.Object)
	}
	return short(q.Object) + " " + q.Field
}

// instead says what serves in its place.
func (q *quarantined) instead() string {
	switch {
	case q.Serves && q.Revision > 0:
		return fmt.Sprintf("revision %d", q.Revision)
	case q.Serves:
		return "the version before"
	}
	return "nothing"
}

// reason is that of the latest refusal, with the proxy that gave it.
func (q *quarantined) reason() string {
	if len(q.Refused) == 0 {
		return ""
	}
	r := q.Refused[len(q.Refused)-1]
	return r.Proxy + ": " + strings.Join(strings.Fields(r.Reason), " ")
}
