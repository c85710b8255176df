package gateway

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/versioned"
)

// VersionOf is the full name of a version of a function.
func VersionOf(function string, number int64) string {
	project, _, id, _ := split(function)
	return "projects/" + project + "/" + KindFunctionVersions + "/" + id + "." + strconv.FormatInt(number, 10)
}

// VersionName is the name under which a version that is not simply the newest is
// run and balanced: the function's with "@" and the number.
func VersionName(function string, number int64) string {
	return function + "@" + strconv.FormatInt(number, 10)
}

// FunctionOf takes a name apart that VersionName made, or is a function's; number
// is 0 for the newest.
func FunctionOf(name string) (function string, number int64) {
	function, text, ok := strings.Cut(name, "@")
	if !ok {
		return name, 0
	}
	number, _ = strconv.ParseInt(text, 10, 64)
	return function, number
}

// Versions are the versions of a function that are kept, the newest first.
func (s *Snapshot) Versions(function string) []*pb.FunctionVersion {
	var out []*pb.FunctionVersion
	for _, o := range s.List(KindFunctionVersions, projectOf(function)) {
		if v := o.(*pb.FunctionVersion); v.GetFunction() == function {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *pb.FunctionVersion) int { return cmp.Compare(b.GetNumber(), a.GetNumber()) })
	return out
}

// CurrentVersion is the number of the version that a function is now; 0 when none is
// kept of it.
func (s *Snapshot) CurrentVersion(f *pb.Function) int64 {
	spec := versioned.Part(f)
	for _, v := range s.Versions(f.GetName()) {
		if proto.Equal(v.GetSpec(), spec) {
			return v.GetNumber()
		}
	}
	return 0
}

// VersionsOf are the numbers of the versions that deployments are, by name, without
// those of which none is kept. It looks at each version once, however many there are.
func (s *Snapshot) VersionsOf(deployments []*pb.Function) map[string]int64 {
	out := make(map[string]int64, len(deployments))
	newest := map[string]*pb.Function{}
	for _, d := range deployments {
		if _, number := FunctionOf(d.GetName()); number != 0 {
			out[d.GetName()] = number
		} else {
			newest[d.GetName()] = versioned.Part(d)
		}
	}
	for _, o := range s.List(KindFunctionVersions, "") {
		v := o.(*pb.FunctionVersion)
		if spec := newest[v.GetFunction()]; spec != nil && v.GetNumber() > out[v.GetFunction()] && proto.Equal(v.GetSpec(), spec) {
			out[v.GetFunction()] = v.GetNumber()
		}
	}
	return out
}

func (s *Snapshot) versionNumbers(function string) string {
	var out []string
	for _, v := range s.Versions(function) {
		out = append(out, strconv.FormatInt(v.GetNumber(), 10))
	}
	return cmp.Or(strings.Join(out, ", "), "none")
}

// Deployments are what has to run of a function: the function itself when its
// newest version gets requests, by weight or by a tag, and every other version that
// does, under its VersionName and with the function's own scale.
func (s *Snapshot) Deployments(f *pb.Function) []*pb.Function {
	if len(f.GetTraffic()) == 0 && !s.lacksSecret(f) {
		return []*pb.Function{f}
	}
	var out []*pb.Function
	seen := map[int64]bool{}
	for _, t := range f.GetTraffic() {
		if seen[t.GetVersion()] {
			continue
		}
		seen[t.GetVersion()] = true
		if d := s.deployment(f, t.GetVersion()); d != nil {
			out = append(out, d)
		}
	}
	return out
}

// deployment is one version as a function; nil when it is not there, or a secret that it
// needs is damaged.
func (s *Snapshot) deployment(f *pb.Function, number int64) *pb.Function {
	if number == 0 {
		if s.lacksSecret(f) {
			return nil
		}
		return f
	}
	v, _ := s.Get(VersionOf(f.GetName(), number)).(*pb.FunctionVersion)
	if v == nil || s.lacksSecret(v.GetSpec()) {
		return nil
	}
	d := proto.CloneOf(v.GetSpec())
	d.Name, d.Scale, d.Instances = VersionName(f.GetName(), number), f.GetScale(), f.GetInstances()
	return d
}

// SecretEnv are the present values of a function's env_secrets, by variable; nil when it
// has none. Values that are not there are left out. f may be a deployment.
func (s *Snapshot) SecretEnv(f *pb.Function) map[string]string {
	if len(f.GetEnvSecrets()) == 0 {
		return nil
	}
	out := map[string]string{}
	for variable, k := range f.GetEnvSecrets() {
		secret, _ := s.Get(Resolve(projectOf(f.GetName()), KindSecrets, k.GetSecret())).(*pb.Secret)
		if value, ok := secret.GetData()[k.GetKey()]; ok {
			out[variable] = value
		}
	}
	return out
}

// tagged is the entry of a tag; nil when there is none.
func tagged(f *pb.Function, tag string) *pb.Traffic {
	for _, t := range f.GetTraffic() {
		if t.GetTag() == tag {
			return t
		}
	}
	return nil
}

func tagNames(f *pb.Function) string {
	var out []string
	for _, t := range f.GetTraffic() {
		if t.GetTag() != "" {
			out = append(out, t.GetTag())
		}
	}
	return cmp.Or(strings.Join(out, ", "), "none")
}

// split makes the targets of a forward to a function: one for each version that
// gets requests, with the weights of its traffic. t has the subset and the weight of
// the forward.
func (s *Snapshot) split(f *pb.Function, t Target) []Target {
	one := func(number int64, weight uint32) []Target {
		d := s.deployment(f, number)
		if d == nil {
			return nil
		}
		return []Target{{Function: d, Subset: t.Subset, Weight: weight}}
	}
	switch {
	case t.Subset != "":
		return one(tagged(f, t.Subset).GetVersion(), t.Weight)
	case len(f.GetTraffic()) == 0:
		return one(0, t.Weight)
	}
	var out []Target
	for _, part := range f.GetTraffic() {
		if part.GetWeight() > 0 {
			// The weight of the forward is put in by weigh.
			out = append(out, one(part.GetVersion(), part.GetWeight())...)
		}
	}
	total := uint64(0)
	for _, p := range out {
		total += uint64(p.Weight)
	}
	for i := range out {
		out[i].share, out[i].of = uint64(out[i].Weight)*uint64(t.Weight), total
	}
	return out
}

// maxTotalWeight is the largest sum of weights that Envoy takes.
const maxTotalWeight = math.MaxUint32

// weigh makes one list of targets out of those of each backend, so that what a
// backend gets is split among its parts.
func weigh(parts [][]Target) []Target {
	common := uint64(1)
	for _, p := range parts {
		if len(p) > 0 && p[0].of > 1 && common <= math.MaxUint32 {
			common = common / gcd(common, p[0].of) * p[0].of
		}
	}
	var out []Target
	var weights []float64
	sum := 0.0
	for _, p := range parts {
		for _, t := range p {
			w := float64(t.Weight)
			if t.of > 0 {
				w = float64(t.share) / float64(t.of)
			}
			w *= float64(common)
			sum += w
			weights = append(weights, w)
			t.share, t.of = 0, 0
			out = append(out, t)
		}
	}
	shrink := max(1, sum/(maxTotalWeight/2))
	divisor := uint64(0)
	for i, w := range weights {
		out[i].Weight = uint32(math.Round(w / shrink))
		if w > 0 && out[i].Weight == 0 {
			out[i].Weight = 1
		}
		divisor = gcd(divisor, uint64(out[i].Weight))
	}
	if common > 1 && divisor > 1 {
		for i := range out {
			out[i].Weight /= uint32(divisor)
		}
	}
	return out
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// traffic checks the entries of a function's traffic among themselves.
func (c *checker) traffic(f *pb.Function) {
	if len(f.GetTraffic()) == 0 {
		return
	}
	seen, tags := map[int64]int{}, map[string]int{}
	weight := uint64(0)
	for i, t := range f.GetTraffic() {
		field := fmt.Sprintf("traffic[%d]", i)
		weight += uint64(t.GetWeight())
		if tag := t.GetTag(); tag != "" {
			if j, twice := tags[tag]; twice {
				c.add(field+".tag", "%q is the tag of traffic[%d] already; a tag means one version", tag, j)
			}
			tags[tag] = i
		}
		if j, twice := seen[t.GetVersion()]; twice && t.GetTag() == "" {
			c.add(field+".version", "is in traffic[%d] already; give one of them a tag, or put the weights together", j)
		}
		seen[t.GetVersion()] = i
	}
	if weight == 0 {
		c.add("traffic", "no entry has a weight, so no version would get requests; give one a weight, or leave traffic out for the newest")
	}
}
