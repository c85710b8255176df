package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestPrintTrace prints each span once, whatever their ids are: functions make spans of
// their own.
func TestPrintTrace(t *testing.T) {
	const spans = `{"processes":{"p":{"serviceName":"shop"}},"spans":[
		{"spanID":"1","operationName":"root","processID":"p","startTime":1},
		{"spanID":"2","operationName":"child","processID":"p","startTime":2,"references":[{"spanID":"1"}]},
		{"spanID":"2","operationName":"twin","processID":"p","startTime":3,"references":[{"spanID":"2"}]},
		{"spanID":"5","operationName":"lone","processID":"p","startTime":4,"references":[{"spanID":"9"}]},
		{"spanID":"6","operationName":"ring","processID":"p","startTime":5,"references":[{"spanID":"7"}]},
		{"spanID":"7","operationName":"ring back","processID":"p","startTime":6,"references":[{"spanID":"6"}]}]}`
	var tr trace
	if err := json.Unmarshal([]byte(spans), &tr); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	printTrace(&out, &tr)
	for _, name := range []string{"root", "child", "twin", "lone", "ring", "ring back"} {
		if n := strings.Count(out.String(), "shop: "+name+"\n"); n != 1 {
			t.Errorf("%s is printed %d times:\n%s", name, n, out.String())
		}
	}
}

// TestPrintRunners says how many runners there are to whoever may not know their names.
func TestPrintRunners(t *testing.T) {
	for want, s := range map[string]*pb.GetStatusResponse{
		"runners: none is connected\n": {},
		"runners: a, b\n":              {Runners: []string{"a", "b"}, RunnerCount: 2},
		"runners: 2 connected (":       {RunnerCount: 2},
	} {
		var out bytes.Buffer
		if printStatus(&out, s); !strings.Contains(out.String(), want) {
			t.Errorf("%q has no %q", out.String(), want)
		}
	}
}
