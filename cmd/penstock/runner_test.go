package main

import (
	"slices"
	"strings"
	"testing"
)

func TestRunnerReplicas(t *testing.T) {
	parse := func(args ...string) *runnerFlags {
		t.Helper()
		c := newRunnerCommand()
		if err := c.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		control, err := c.Flags().GetStringSlice("control")
		if err != nil {
			t.Fatal(err)
		}
		return &runnerFlags{control: control}
	}
	for _, test := range []struct {
		args []string
		want []string // address and the name that its certificate must have
	}{
		{nil, []string{"127.0.0.1:7401 127.0.0.1"}},
		{[]string{"--control", "a.example:1", "--control", "[::1]:2"}, []string{"a.example:1 a.example", "[::1]:2 ::1"}},
		{[]string{"--control=a:1,b:2"}, []string{"a:1 a", "b:2 b"}},
	} {
		addresses, err := parse(test.args...).replicas()
		if err != nil {
			t.Error(err)
		}
		var got []string
		for _, a := range addresses {
			got = append(got, a.Addr+" "+a.ServerName)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%v: %v, want %v", test.args, got, test.want)
		}
	}
	for text, args := range map[string][]string{
		`--control "b"`:  {"--control", "a:1", "--control", "b"},
		"no address":     {"--control="},
		`--control ":1"`: {"--control", ":1"},
	} {
		if _, err := parse(args...).replicas(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v: %v, want an error with %s", args, err, text)
		}
	}
}
