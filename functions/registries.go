package functions

import (
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/penstock-gateway/penstock/functions/sandbox"
)

// registries are where builds get what they need from: what the runner's environment
// and the configuration files of its user say to Go, pip and npm. A build gets these as
// variables, since it sees neither that environment nor those files. They may hold a
// credential of a registry, which every package that is installed can then read.
type registries struct {
	golang, pip, npm func() settings
}

// settings are variables, with the files and folders that they name, and the services of
// this machine: a mirror of a registry, or a proxy, on its loopback interface.
type settings struct {
	env   map[string]string
	read  []string
	allow []netip.AddrPort
}

// loopbackURL is an URL of a service of this machine.
var loopbackURL = regexp.MustCompile(`https?://(?:[^/@\s]*@)?(localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]):([0-9]{1,5})`)

// buildVariables of the runner's environment may pass into a build, as may the settings
// of pip and npm (buildPrefixes) but for those that say where to write; nothing else.
var (
	buildVariables = []string{
		"PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
		"REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
	}
	buildPrefixes = []string{"PIP_", "NPM_CONFIG_", "npm_config_"}
	// placesToWrite are the endings of names of settings that lead out of the sandbox.
	placesToWrite = []string{"CACHE_DIR", "CACHE", "PREFIX", "TARGET", "ROOT", "USER", "LOG", "LOGS_DIR", "SRC", "REPORT", "BUILD", "TMP", "INIT_MODULE"}
	goVariables   = []string{"GOROOT", "GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GOINSECURE", "GOTOOLCHAIN", "GOVCS", "CGO_ENABLED", "GOFLAGS"}
	npmKeys       = []string{"registry", "cafile", "proxy", "https-proxy", "noproxy", "nodedir", "strict-ssl"}
)

func (m *manager) registries() registries {
	return registries{
		golang: sync.OnceValue(func() settings { return inherited().with(m.goSettings()) }),
		pip:    sync.OnceValue(func() settings { return inherited().with(m.pipSettings()) }),
		npm:    sync.OnceValue(func() settings { return inherited().with(m.npmSettings()) }),
	}
}

// inherited are those of the runner's environment.
func inherited() settings {
	env := map[string]string{}
	for _, v := range os.Environ() {
		k, v, _ := strings.Cut(v, "=")
		prefixed := func(p string) bool {
			name, ok := strings.CutPrefix(k, p)
			return ok && !slices.Contains(placesToWrite, strings.ToUpper(strings.ReplaceAll(name, "-", "_")))
		}
		if slices.Contains(buildVariables, k) || slices.ContainsFunc(buildPrefixes, prefixed) {
			env[k] = v
		}
	}
	return settings{env: env}
}

// with adds what is not there yet, and finds the paths in all of it.
func (s settings) with(more map[string]string) settings {
	env := maps.Clone(more)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, s.env)
	out := settings{env: env}
	for k, v := range env {
		if k == "PATH" {
			continue
		}
		for _, m := range loopbackURL.FindAllStringSubmatch(v, -1) {
			if allowed, err := sandbox.ParseAllow([]string{m[1] + ":" + m[2]}); err == nil {
				out.allow = append(out.allow, allowed...)
			}
		}
		for word := range strings.FieldsFuncSeq(v, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' || r == '|' }) {
			word = strings.TrimPrefix(word, "file://")
			if filepath.IsAbs(word) && filepath.Clean(word) != "/" {
				out.read = append(out.read, filepath.Clean(word))
			}
		}
	}
	return out
}

// goSettings are those of the Go tool; none where there is no such tool.
func (m *manager) goSettings() map[string]string {
	tool, err := exec.LookPath("go")
	if err != nil {
		return nil
	}
	out, err := m.versionOf(m.builder.ctx, tool, append([]string{"env", "-json"}, goVariables...)...)
	env := map[string]string{}
	if err != nil || json.Unmarshal([]byte(out), &env) != nil {
		m.config.Logger.Warn("the settings of the Go tool are not understood; builds use its defaults", "error", err)
		return nil
	}
	maps.DeleteFunc(env, func(_, v string) bool { return v == "" })
	// A copy of a source is in no repository, and what is cached can be removed. Of the
	// runner's own flags only the one counts that says where sources are.
	flags := "-buildvcs=false -modcacherw"
	if slices.Contains(strings.Fields(env["GOFLAGS"]), "-trimpath") {
		flags += " -trimpath"
	}
	env["GOFLAGS"] = flags
	return env
}

// pipSettings are those of the configuration files of pip.
func (m *manager) pipSettings() map[string]string {
	out, err := m.versionOf(m.builder.ctx, m.interpreters.python().path, "-I", "-m", "pip", "config", "list")
	if err != nil {
		return nil
	}
	env := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		section, name, dotted := strings.Cut(key, ".")
		if !ok || !dotted || section != "global" && section != "install" {
			continue
		}
		name = strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if value = strings.Trim(value, `'"`); !slices.Contains(placesToWrite, name) {
			env["PIP_"+name] = strings.ReplaceAll(value, `\n`, " ")
		}
	}
	return env
}

// npmSettings are those of npm's configuration files that say where packages come from.
func (m *manager) npmSettings() map[string]string {
	out, err := m.versionOf(m.builder.ctx, "npm", "config", "list", "--json")
	all := map[string]any{}
	if err != nil || json.Unmarshal([]byte(out), &all) != nil {
		return nil
	}
	env := map[string]string{}
	for _, key := range npmKeys {
		switch v := all[key].(type) {
		case string:
			env["npm_config_"+strings.ReplaceAll(key, "-", "_")] = v
		case bool:
			if !v {
				env["npm_config_"+strings.ReplaceAll(key, "-", "_")] = "false"
			}
		}
	}
	return env
}
