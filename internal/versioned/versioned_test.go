package versioned_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/versioned"
)

// TestFields has each field of Function in one of two lists, so that a new one is decided
// on: an old version is kept for what makes one, and instances are replaced for it.
func TestFields(t *testing.T) {
	version := []string{"lambda", "server", "functions_framework", "azure", "source", "env", "concurrency", "timeout", "start_timeout",
		"resources", "isolation", "dependencies", "env_secrets"}
	beside := []string{"name", "metadata", "instances", "scale", "traffic", "auto_rollback", "status"}
	full := &pb.Function{
		Name: "projects/p/functions/f", Metadata: &pb.Metadata{Etag: "1"}, Source: "src", Env: map[string]string{"A": "b"}, Instances: 2,
		Concurrency: 3, Timeout: durationpb.New(1), StartTimeout: durationpb.New(2), Scale: &pb.Scale{Min: 1}, Traffic: []*pb.Traffic{{Version: 1}},
		Resources: &pb.Resources{}, Isolation: &pb.Isolation{}, AutoRollback: &pb.AutoRollback{}, Dependencies: pb.DependencyMode_DEPENDENCY_MODE_NONE,
		EnvSecrets: map[string]*pb.SecretKey{"C": {Secret: "s"}}, Status: &pb.Status{},
	}
	contracts := map[string]*pb.Function{
		"lambda":              {Contract: &pb.Function_Lambda{Lambda: &pb.LambdaContract{}}},
		"server":              {Contract: &pb.Function_Server{Server: &pb.ServerContract{}}},
		"functions_framework": {Contract: &pb.Function_FunctionsFramework{FunctionsFramework: &pb.FunctionsFrameworkContract{}}},
		"azure":               {Contract: &pb.Function_Azure{Azure: &pb.AzureContract{}}},
	}
	fields := full.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		field, f := fields.Get(i), full
		if c := contracts[string(field.Name())]; c != nil {
			f = c
		}
		name, has := string(field.Name()), f.ProtoReflect().Has(field)
		kept := versioned.Part(f).ProtoReflect().Has(field)
		switch {
		case !has || slices.Contains(version, name) == slices.Contains(beside, name):
			t.Errorf("%s is new: put it into this test; if a change of it makes no new version and no new instances, mark it with (not_in_version) in function.proto", name)
		case kept != slices.Contains(version, name):
			t.Errorf("%s is in a version: %t, want %t", name, kept, !kept)
		}
	}
}
