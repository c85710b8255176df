package contract

import (
	"fmt"
	"regexp"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// frameworkTarget are the names that the Functions Frameworks take: those that code
// registers, and attributes of modules.
var frameworkTarget = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

var framework = Contract{
	Name: "functions_framework", concurrency: 1,
	text: func(f *pb.Function) string {
		return "functions-framework/" + short(f.GetFunctionsFramework().GetRuntime())
	},
	check: func(f *pb.Function, r Report) {
		if n := f.GetFunctionsFramework().GetTarget(); n != "" && !frameworkTarget.MatchString(n) && !r.Has("functions_framework.target") {
			r.Add("functions_framework.target", "%q must be the name of a function in the source: a letter or _, then letters, digits, _, - and .", n)
		}
	},
	language: func(f *pb.Function) Language {
		switch f.GetFunctionsFramework().GetRuntime() {
		case pb.FunctionsFrameworkRuntime_FUNCTIONS_FRAMEWORK_RUNTIME_PYTHON:
			return Python
		case pb.FunctionsFrameworkRuntime_FUNCTIONS_FRAMEWORK_RUNTIME_NODE:
			return Node
		}
		return Any
	},
}

// short is a value of an enum without what all its values begin with.
func short(s fmt.Stringer) string {
	t := s.String()
	return strings.ToLower(t[strings.LastIndexByte(t, '_')+1:])
}
