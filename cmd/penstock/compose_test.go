package main

import (
	"os"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestComposeFlags: what deploy/compose passes to `penstock up` are flags that it
// has, with values that it takes. (There is no container engine in CI.)
func TestComposeFlags(t *testing.T) {
	b, err := os.ReadFile("../../deploy/compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct{ Command []string }
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	command := file.Services["penstock"].Command
	if len(command) < 2 || command[0] != "up" {
		t.Fatalf("the command of service penstock is %v, want up with flags", command)
	}
	if err := newUpCommand().ParseFlags(command[1:]); err != nil {
		t.Error(err)
	}
}
