package connect

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/penstock-gateway/penstock/internal/access"
	"github.com/penstock-gateway/penstock/internal/keyfile"
)

// Contexts are the control planes that a user logged in to.
type Contexts struct {
	// Current is the name of the context in use; "": the one of this machine.
	Current string `yaml:"current,omitempty"`
	// Contexts by name.
	Contexts map[string]*Context `yaml:"contexts,omitempty"`
}

// Context is a control plane and a credential for it.
type Context struct {
	// Server is host:port or https://host:port of the API over gRPC.
	Server string `yaml:"server"`
	// HTTP is host:port of REST and the debug pages; may be absent.
	HTTP string `yaml:"http,omitempty"`
	// Token is the credential, or TokenFile the file that holds it.
	Token     string `yaml:"token,omitempty"`
	TokenFile string `yaml:"token_file,omitempty"`
	// CAFile, CertFile and KeyFile are of TLS.
	CAFile   string `yaml:"ca_file,omitempty"`
	CertFile string `yaml:"cert_file,omitempty"`
	KeyFile  string `yaml:"key_file,omitempty"`
	// Project is the project of short names.
	Project string `yaml:"project,omitempty"`
}

// ContextName is what the name of a context may be.
var ContextName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

// contextsFile is PENSTOCK_CONTEXTS_FILE, or penstock/contexts.yaml in the user's
// configuration folder.
func contextsFile() (string, error) {
	if f := os.Getenv("PENSTOCK_CONTEXTS_FILE"); f != "" {
		return f, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "penstock", "contexts.yaml"), nil
}

// LoadContexts reads the contexts of this user; none when there is no file.
func LoadContexts() (*Contexts, error) {
	c := &Contexts{}
	file, err := contextsFile()
	if err != nil {
		return c, nil // a service without a home folder
	}
	if err := keyfile.Check(file); err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(c); err != nil && !strings.Contains(err.Error(), "EOF") {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// Save writes the contexts, to a file of mode 0600 in a folder of mode 0700.
func (c *Contexts) Save() error {
	file, err := contextsFile()
	if err != nil {
		return err
	}
	if err := access.PrivateDir(filepath.Dir(file)); err != nil {
		return err
	}
	b, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return replace(file, b)
}

// Get returns a context by name.
func (c *Contexts) Get(name string) (*Context, error) {
	if x := c.Contexts[name]; x != nil {
		return x, nil
	}
	known := slices.Sorted(maps.Keys(c.Contexts))
	if len(known) == 0 {
		return nil, fmt.Errorf("the context %q does not exist: `penstock login` makes one", name)
	}
	return nil, fmt.Errorf("the context %q does not exist; there are %s", name, strings.Join(known, ", "))
}

func (c *Contexts) target(name string) (*Target, error) {
	x, err := c.Get(name)
	if err != nil {
		return nil, err
	}
	t, err := x.Target()
	if err != nil {
		return nil, fmt.Errorf("the context %s: %w", name, err)
	}
	t.Name = "the context " + name
	return t, nil
}

// Target is the control plane of a context.
func (x *Context) Target() (*Target, error) {
	at, err := parseServer(x.Server)
	if err != nil {
		return nil, err
	}
	token := x.Token
	if x.TokenFile != "" {
		if token, err = ReadToken(x.TokenFile, nil); err != nil {
			return nil, fmt.Errorf("token_file: %w", err)
		}
	}
	t, err := at.target(token, x.CAFile, x.CertFile, x.KeyFile)
	if err != nil {
		return nil, err
	}
	t.HTTP, t.Project = x.HTTP, x.Project
	return t, nil
}
