package contract_test

import (
	"testing"

	"github.com/penstock-gateway/penstock/functions/contract"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestContracts has a contract for every field of the oneof, and for no other.
func TestContracts(t *testing.T) {
	fields := (&pb.Function{}).ProtoReflect().Descriptor().Oneofs().ByName("contract").Fields()
	all := contract.All()
	if len(all) != fields.Len() {
		t.Errorf("there are %d contracts for %d fields", len(all), fields.Len())
	}
	for i := range min(len(all), fields.Len()) {
		if all[i].Name != fields.Get(i).Name() {
			t.Errorf("contract %d is %s, but the field is %s", i, all[i].Name, fields.Get(i).Name())
		}
		f := &pb.Function{}
		f.ProtoReflect().Mutable(fields.Get(i))
		if got := contract.Of(f).Name; got != fields.Get(i).Name() {
			t.Errorf("a function with %s has the contract %q", fields.Get(i).Name(), got)
		}
	}
}

// TestFacts are what the rest of the program asks of contracts.
func TestFacts(t *testing.T) {
	lambda := func(r pb.LambdaRuntime) *pb.Function {
		return &pb.Function{Contract: &pb.Function_Lambda{Lambda: &pb.LambdaContract{Runtime: r}}}
	}
	framework := func(r pb.FunctionsFrameworkRuntime) *pb.Function {
		return &pb.Function{Contract: &pb.Function_FunctionsFramework{FunctionsFramework: &pb.FunctionsFrameworkContract{Runtime: r}}}
	}
	server := func(s *pb.ServerContract) *pb.Function {
		return &pb.Function{Contract: &pb.Function_Server{Server: s}}
	}
	type facts struct {
		text         string
		concurrency  int
		http2, whole bool
		language     contract.Language
		build        int
	}
	for name, row := range map[string]struct {
		f    *pb.Function
		want facts
	}{
		"none":             {&pb.Function{}, facts{text: "unknown", concurrency: 100}},
		"lambda":           {lambda(pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON), facts{text: "lambda/python", concurrency: 1, whole: true, language: contract.Python}},
		"lambda program":   {lambda(pb.LambdaRuntime_LAMBDA_RUNTIME_PROVIDED), facts{text: "lambda/provided", concurrency: 1, whole: true}},
		"framework":        {framework(pb.FunctionsFrameworkRuntime_FUNCTIONS_FRAMEWORK_RUNTIME_PYTHON), facts{text: "functions-framework/python", concurrency: 1, language: contract.Python}},
		"framework Node":   {framework(pb.FunctionsFrameworkRuntime_FUNCTIONS_FRAMEWORK_RUNTIME_NODE), facts{text: "functions-framework/node", concurrency: 1, language: contract.Node}},
		"azure":            {&pb.Function{Contract: &pb.Function_Azure{Azure: &pb.AzureContract{}}}, facts{text: "azure", concurrency: 100}},
		"server":           {server(&pb.ServerContract{Build: []string{"make"}}), facts{text: "server", concurrency: 100, build: 1}},
		"server of HTTP/2": {server(&pb.ServerContract{Protocol: pb.ServerProtocol_SERVER_PROTOCOL_H2C}), facts{text: "server", concurrency: 100, http2: true}},
	} {
		got := facts{
			text: contract.Text(row.f), concurrency: contract.Concurrency(row.f), http2: contract.HTTP2(row.f), whole: contract.WholeBody(row.f),
			language: contract.LanguageOf(row.f), build: len(contract.Build(row.f)),
		}
		if got != row.want {
			t.Errorf("%s: got %+v, want %+v", name, got, row.want)
		}
		row.f.Concurrency = 7
		if n := contract.Concurrency(row.f); n != 7 {
			t.Errorf("%s: concurrency 7 is %d", name, n)
		}
	}
}
