// Package connect finds a control plane and calls it: the one that runs on this
// machine, by what it left in its data folder, or one elsewhere, by a context.
package connect

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/launch"
)

// Endpoint is how a running control plane is reached from its own machine. It lies
// in the private folder, in endpoint.json.
type Endpoint struct {
	launch.ID
	StartedAt time.Time `json:"started_at"`
	// DataDir is the data folder, absolute.
	DataDir string `json:"data_dir"`
	// APISocket and RESTSocket ask for no credential but the user's id.
	APISocket  string `json:"api_socket"`
	RESTSocket string `json:"rest_socket"`
	// API and HTTP are the addresses, which ask for one.
	API  string `json:"api"`
	HTTP string `json:"http"`
	// TLS reports whether both are TLS.
	TLS bool `json:"tls"`
	// Network is the network namespace that the addresses are in.
	Network string `json:"network"`
}

// network names the network namespace of this process; "" where there are none.
func network() string {
	ns, _ := os.Readlink("/proc/self/ns/net")
	return ns
}

const endpointFile = "endpoint.json"

// Dir is the private folder of a data folder.
func Dir(dataDir string) string { return filepath.Join(dataDir, "access") }

// CredentialFile is the file with the owner's token of a data folder.
func CredentialFile(dataDir string) string { return filepath.Join(Dir(dataDir), access.CredentialFile) }

// Announce writes how this process, a control plane, is reached, and makes it known
// to the user's other commands. The error says what was not possible; what was is
// undone by withdraw.
func Announce(e Endpoint) (withdraw func(), err error) {
	if e.ID, err = launch.Identify(os.Getpid()); err != nil {
		return func() {}, err
	}
	if e.DataDir, err = filepath.Abs(e.DataDir); err != nil {
		return func() {}, err
	}
	e.StartedAt, e.Network = time.Now(), network()
	file := filepath.Join(Dir(e.DataDir), endpointFile)
	if err := writeJSON(file, e); err != nil {
		return func() {}, err
	}
	running, err := runningDir()
	if err == nil {
		err = writeJSON(filepath.Join(running, nameOf(e.DataDir)), struct {
			DataDir string `json:"data_dir"`
		}{e.DataDir})
		prune(running)
	}
	return func() { _ = os.Remove(file) }, err
}

func nameOf(dataDir string) string {
	h := fnv.New128a()
	h.Write([]byte(dataDir))
	return hex.EncodeToString(h.Sum(nil)) + ".json"
}

// Read returns the endpoint of the control plane that runs on a data folder; nil
// when none does.
func Read(dataDir string) (*Endpoint, error) {
	b, err := os.ReadFile(filepath.Join(Dir(dataDir), endpointFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var e Endpoint
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(Dir(dataDir), endpointFile), err)
	}
	if !e.ID.Alive() {
		return nil, nil
	}
	return &e, nil
}

// Running returns the control planes that this user runs on this machine, in this
// network namespace, by data folder.
func Running() []*Endpoint {
	dir, err := runningDir()
	if err != nil {
		return nil
	}
	var out []*Endpoint
	for _, e := range entries(dir) {
		if e.endpoint != nil && e.endpoint.Network == network() {
			out = append(out, e.endpoint)
		}
	}
	slices.SortFunc(out, func(a, b *Endpoint) int { return strings.Compare(a.DataDir, b.DataDir) })
	return out
}

type entry struct {
	file     string
	endpoint *Endpoint // nil: it does not run
}

func entries(dir string) []entry {
	files, _ := filepath.Glob(filepath.Join(dir, "*.json"))
	var out []entry
	for _, f := range files {
		var known struct {
			DataDir string `json:"data_dir"`
		}
		b, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(b, &known)
		}
		e := entry{file: f}
		if err == nil && own(Dir(known.DataDir)) {
			e.endpoint, _ = Read(known.DataDir)
		}
		out = append(out, e)
	}
	return out
}

// prune forgets what no longer runs.
func prune(dir string) {
	for _, e := range entries(dir) {
		if e.endpoint == nil {
			_ = os.Remove(e.file)
		}
	}
}

// own reports whether a folder belongs to the user who runs this: what others left
// for us to find is not believed.
func own(dir string) bool {
	info, err := os.Stat(dir)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// runningDir is where the control planes of this user are listed:
// $XDG_RUNTIME_DIR/penstock or, without one, a folder of the user's cache.
func runningDir() (string, error) {
	base := os.Getenv("XDG_RUNTIME_DIR")
	if base == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		base = cache
	}
	dir := filepath.Join(base, "penstock", "running")
	return dir, access.PrivateDir(dir)
}

// writeJSON replaces a file of mode 0600.
func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return replace(file, append(b, '\n'))
}

func replace(file string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
