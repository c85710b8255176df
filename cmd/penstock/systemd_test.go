package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// unitDirectives are the directives that systemd 252 knows (systemd.unit(5), systemd.service(5),
// systemd.exec(5), systemd.kill(5), systemd.resource-control(5)), of those that our units use.
// A misspelt one would only be a warning in the journal.
var unitDirectives = map[string]string{
	"Unit": "Description Documentation Wants After Conflicts ConditionPathExists StartLimitIntervalSec StartLimitBurst",
	"Service": "Type User Group StateDirectory StateDirectoryMode CacheDirectory RuntimeDirectory RuntimeDirectoryMode WorkingDirectory " +
		"Environment EnvironmentFile ExecStart Restart RestartSec KillMode TimeoutStopSec LimitNOFILE UMask Delegate TasksMax " +
		"NoNewPrivileges ProtectSystem ProtectHome PrivateTmp PrivateDevices ProtectClock ProtectHostname ProtectControlGroups " +
		"ProtectKernelLogs ProtectKernelModules ProtectKernelTunables LockPersonality RestrictNamespaces RestrictRealtime " +
		"RestrictSUIDSGID SystemCallArchitectures RestrictAddressFamilies CapabilityBoundingSet AmbientCapabilities MemoryDenyWriteExecute",
	"Install": "WantedBy",
}

// unitFile is a unit as far as the tests need it: its directives, each with all its values.
type unitFile map[string][]string

func readUnit(t *testing.T, path string) unitFile {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	section, out := "", unitFile{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch name, value, isDirective := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case !isDirective || !slices.Contains(strings.Fields(unitDirectives[section]), name):
			t.Errorf("%s: %q is not a known directive of [%s]", filepath.Base(path), line, section)
		default:
			out[name] = append(out[name], value)
		}
	}
	return out
}

// settings returns the variables in the example of an environment file, those that are
// commented out, too.
func settings(t *testing.T, path string) (out []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if rest, isComment := strings.CutPrefix(line, "# "); isComment && strings.HasPrefix(rest, envPrefix) {
			line = rest
		}
		switch {
		case line == "" || line[0] == '#':
		case strings.HasPrefix(line, envPrefix) && strings.Contains(line, "="):
			out = append(out, line)
		default:
			t.Errorf("%s: %q is not a setting", filepath.Base(path), line)
		}
	}
	return out
}

// TestSystemdUnits: what the units start exists, with the flags that they set on the
// command line and in the environment, and systemd knows what they ask of it.
func TestSystemdUnits(t *testing.T) {
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	units, err := filepath.Glob(filepath.Join(root, "deploy", "systemd", "*.service"))
	if err != nil || len(units) != 6 {
		t.Fatalf("units: %v, %v; want 6", units, err)
	}
	page, err := os.ReadFile(filepath.Join(root, "deploy", "systemd", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range units {
		name := strings.TrimSuffix(filepath.Base(path), ".service")
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(string(page), "`"+name+".service`") {
				t.Errorf("README.md does not name it")
			}
			unit := readUnit(t, path)
			if got := unit["EnvironmentFile"]; !slices.Equal(got, []string{"/etc/penstock/%N.env"}) {
				t.Errorf("EnvironmentFile %v", got)
			}
			if len(unit["ExecStart"]) != 1 {
				t.Fatalf("ExecStart %v", unit["ExecStart"])
			}
			args, ours := strings.CutPrefix(unit["ExecStart"][0], "/usr/local/bin/penstock ")
			if !ours {
				t.Fatalf("ExecStart %q", unit["ExecStart"][0])
			}
			var given []string
			for _, line := range unit["Environment"] {
				for _, setting := range strings.Fields(line) {
					if setting != "HOME=/var/lib/"+name {
						given = append(given, setting)
					}
				}
			}
			tryCommand(t, args, slices.Concat(given, settings(t, strings.TrimSuffix(path, ".service")+".env")))
			verifyUnit(t, path)
		})
	}
}

// tryCommand parses a command line with settings from the environment, each of which must
// be one that this very command reads.
func tryCommand(t *testing.T, args string, given []string) {
	t.Helper()
	var out strings.Builder
	root := newRoot()
	c, rest, err := root.Find(strings.Fields(args))
	if err != nil || !c.Runnable() {
		t.Fatalf("penstock %s: not a command: %v", args, err)
	}
	if err := c.ParseFlags(rest); err != nil {
		t.Errorf("penstock %s: %v", args, err)
	}
	if err := c.ValidateArgs(c.Flags().Args()); err != nil {
		t.Errorf("penstock %s: %v", args, err)
	}
	for _, setting := range given {
		name, value, _ := strings.Cut(setting, "=")
		t.Setenv(name, value)
		if !reads(c, name) {
			t.Errorf("penstock %s does not read %s", args, name)
		}
	}
	if err := readEnvironment(c); err != nil {
		t.Error(err)
	}
	if err := c.ValidateRequiredFlags(); err != nil {
		t.Errorf("penstock %s: %v", args, err)
	}
	if warnOfVariables(&out, root, given); out.Len() > 0 {
		t.Error(out.String())
	}
}

// reads reports whether a command has a flag of this variable, or one that PENSTOCK_ENVOY
// stands in for.
func reads(c *cobra.Command, name string) bool {
	d := variables(c.Root())[name]
	if d == nil {
		return name == "PENSTOCK_ENVOY" && c.Flags().Lookup("envoy-path") != nil
	}
	return slices.Contains(d.commands, strings.TrimPrefix(c.CommandPath(), "penstock "))
}

// verifyUnit has systemd itself read the unit, where it is installed. What the unit starts
// need not be: it is replaced.
func verifyUnit(t *testing.T, path string) {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("without systemd-analyze: names of directives are checked, not their values")
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), filepath.Base(path))
	unit := strings.ReplaceAll(string(text), "ExecStart=/usr/local/bin/penstock", "ExecStart=/bin/true")
	if err := os.WriteFile(copied, []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), analyze, "verify", copied).CombinedOutput(); err != nil || strings.Contains(string(out), filepath.Base(path)+":") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
