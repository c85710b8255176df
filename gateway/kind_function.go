package gateway

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var _ = addKind(kindSpec[*pb.Function]{
	Singular: "function", Rank: 50,
	Normalize: func(_ *Model, f *pb.Function) { f.Source = strings.TrimSpace(f.GetSource()) },
	Validate:  (*checker).function,
	References: func(_ *Model, project string, f *pb.Function) []reference {
		var out []reference
		for i, t := range f.GetTraffic() {
			if t.GetVersion() != 0 {
				out = append(out, refTo(fmt.Sprintf("traffic[%d].version", i), project, VersionOf(f.GetName(), t.GetVersion()), KindFunctionVersions))
			}
		}
		return append(out, secretReferences(project, "env_secrets", f)...)
	},
	Check: (*Snapshot).checkVersions,
	Unfit: func(r reference, f *pb.Function) string {
		if r.port != 0 {
			return fmt.Sprintf("%s is a function, which has no port to choose; leave port out", r.name)
		}
		if r.subset != "" && tagged(f, r.subset) == nil {
			return fmt.Sprintf("%s has no subset %q: a subset of a function is a tag of its traffic, and it has %s", r.name, r.subset, tagNames(f))
		}
		return ""
	},
})

// versionPattern is a function's id and a number behind it.
var versionPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?\.[1-9][0-9]{0,18}$`)

var _ = addKind(kindSpec[*pb.FunctionVersion]{
	Singular: "function version", Rank: 40, Owner: KindFunctions,
	WrittenBy: "versions are made by writes of their function and never change; which of them get requests is said by its traffic",
	ID: func(id string) error {
		if !versionPattern.MatchString(id) {
			return fmt.Errorf("id %q must be the function's id, a dot and the number of the version", id)
		}
		return nil
	},
	Outlives: true, // but where it gets requests: see checkVersions
	References: func(_ *Model, project string, v *pb.FunctionVersion) []reference {
		return secretReferences(project, "spec.env_secrets", v.GetSpec())
	},
})

func secretReferences(project, path string, f *pb.Function) []reference {
	var out []reference
	for _, variable := range slices.Sorted(maps.Keys(f.GetEnvSecrets())) {
		k := f.GetEnvSecrets()[variable]
		ref := refTo(fmt.Sprintf("%s[%q].secret", path, variable), project, k.GetSecret(), KindSecrets)
		ref.key = k.GetKey()
		out = append(out, ref)
	}
	return out
}
