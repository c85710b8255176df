package functions

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/versioned"
)

// secretEnv are the values of a function's env_secrets, by variable. They go to the
// environment of instances and nowhere else: not to builds, logs, errors or the state.
type secretEnv map[string]string

// String and GoString keep the values out of whatever is printed.
func (s secretEnv) String() string { return fmt.Sprintf("(%d hidden values)", len(s)) }

// GoString implements fmt.GoStringer.
func (s secretEnv) GoString() string { return s.String() }

// secretsOf are the values that a message brings, by function.
func secretsOf(m *pb.ConnectResponse) map[string]secretEnv {
	out := map[string]secretEnv{}
	for _, s := range m.GetSecrets() {
		out[s.GetFunction()] = s.GetEnv()
	}
	return out
}

// missing says which values a function needs and has not got; nil when it has all.
func (s secretEnv) missing(f *pb.Function) error {
	var out []string
	for _, variable := range slices.Sorted(maps.Keys(f.GetEnvSecrets())) {
		if _, ok := s[variable]; !ok {
			k := f.GetEnvSecrets()[variable]
			out = append(out, fmt.Sprintf("%s (secret %s, key %s)", variable, k.GetSecret(), k.GetKey()))
		}
	}
	if len(out) == 0 {
		return nil
	}
	return fmt.Errorf("env_secrets: the control plane sent no value for %s", strings.Join(out, ", "))
}

// environment is env with the values.
func (s secretEnv) environment(env map[string]string) map[string]string {
	if len(s) == 0 {
		return env
	}
	out := maps.Clone(env)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, s)
	return out
}

// key identifies what an instance runs: what makes a version of the function, its name,
// and the values of its secrets. The hash is keyed, and the key is
// of this process, so it tells nobody the values.
func (m *manager) key(f *pb.Function, secrets secretEnv) [sha256.Size]byte {
	c := versioned.Part(f)
	c.Name = f.GetName()
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	mac := hmac.New(sha256.New, m.hashKey[:])
	fmt.Fprintf(mac, "%d ", len(b))
	mac.Write(b)
	for _, variable := range slices.Sorted(maps.Keys(secrets)) {
		fmt.Fprintf(mac, "%q=%q\n", variable, secrets[variable])
	}
	return [sha256.Size]byte(mac.Sum(nil))
}
