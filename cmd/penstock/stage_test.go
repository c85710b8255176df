package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// stage is a folder in which the steps of a page run as they are written, with every port of
// 127.0.0.1 that the page names replaced by one that is free here.
type stage struct {
	dir   string
	steps []pageStep
	here  map[string]string // ports: as the page has them, and as they are here
	env   []string
}

var loopbackPort = regexp.MustCompile(`127\.0\.0\.1:([0-9]+)`)

// installProgram makes bin/penstock in a folder, which is this test binary, and returns
// the folder bin.
func installProgram(t *testing.T, dir string) string {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	program := fmt.Sprintf("#!/bin/sh\nPENSTOCK_TEST_MAIN=1 exec %s \"$@\"\n", os.Args[0])
	if err := os.WriteFile(filepath.Join(bin, "penstock"), []byte(program), 0o700); err != nil {
		t.Fatal(err)
	}
	return bin
}

// newStage prepares the steps of a page, with copies of folders of the clone that they use.
func newStage(t *testing.T, page string, folders ...string) *stage {
	t.Helper()
	root, err := toolbox.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{dir: t.TempDir(), steps: pageSteps(t, page), here: map[string]string{}}
	for _, step := range s.steps {
		for _, m := range loopbackPort.FindAllStringSubmatch(step.command+step.output, -1) {
			if s.here[m[1]] == "" {
				s.here[m[1]] = strconv.Itoa(envoytest.FreePort(t))
			}
		}
	}
	for _, folder := range folders {
		s.copy(t, filepath.Join(root, folder), filepath.Join(s.dir, folder))
	}
	bin := installProgram(t, s.dir)
	s.env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), toolbox.EnvDir+"="+filepath.Join(root, ".tools"))
	t.Cleanup(func() { s.strike(t) })
	return s
}

// copy copies a folder, with the ports of YAML files replaced.
func (s *stage) copy(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(to, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		content := string(text)
		for written, here := range s.here {
			content = strings.ReplaceAll(content, "port: "+written, "port: "+here)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// ports replaces the ports of a text, there and back.
func (s *stage) ports(text string, back bool) string {
	return loopbackPort.ReplaceAllStringFunc(text, func(m string) string {
		_, port, _ := strings.Cut(m, ":")
		for written, here := range s.here {
			switch {
			case !back && port == written:
				return "127.0.0.1:" + here
			case back && port == here:
				return "127.0.0.1:" + written
			}
		}
		return m
	})
}

// run runs one command, and gives what it printed with the ports as the page has them.
func (s *stage) run(t *testing.T, command string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stepPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", s.ports(command, false))
	cmd.WaitDelay = time.Second // a command that it waits for holds its output
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.CombinedOutput()
	return s.ports(string(out), true), err
}

// must is run of a command that may not fail.
func (s *stage) must(t *testing.T, command string) string {
	t.Helper()
	out, err := s.run(t, command)
	if err != nil {
		t.Fatalf("$ %s\n%s%v", command, out, err)
	}
	return out
}

// play runs the steps one after the other: each prints what the page says. One that the
// page lets end in an error line may fail, and no other.
func (s *stage) play(t *testing.T) {
	t.Helper()
	for _, step := range s.steps {
		printed, err := s.run(t, step.command)
		mayFail := strings.Contains("\n"+step.output, "\nerror: ")
		if err != nil && !mayFail || !step.matches(printed) {
			t.Fatalf("$ %s\nprinted (%v):\n%s\nand not:\n%s", step.command, err, printed, step.output)
		}
		t.Logf("$ %s\n%s", step.command, printed)
	}
}

// strike ends what the steps have started and left running: each wrote its process id into
// a file NAME.pid, and its log into NAME.log.
func (s *stage) strike(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "*.pid"))
	deeper, _ := filepath.Glob(filepath.Join(s.dir, "*", "*.pid"))
	for _, file := range append(files, deeper...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Error(file, err)
			continue
		}
		// Only our own: the number may be another process's by now.
		cwd := fmt.Sprintf("/proc/%d/cwd", pid)
		if at, err := os.Readlink(cwd); err != nil || at != s.dir {
			continue
		}
		_ = syscall.Kill(pid, syscall.SIGTERM)
		_ = until(context.WithoutCancel(t.Context()), func(context.Context) error {
			if _, err := os.Readlink(cwd); err == nil {
				return errors.New("it runs still")
			}
			return nil
		})
		if log, err := os.ReadFile(strings.TrimSuffix(file, ".pid") + ".log"); err == nil && t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(file), log)
		}
	}
}
