package functions

import (
	"testing"

	"github.com/penstock-gateway/penstock/functions/contract"
)

// TestExecutions runs every contract that functions may have, and no other.
func TestExecutions(t *testing.T) {
	for _, c := range contract.All() {
		if executions[c.Name].prepare == nil {
			t.Errorf("the contract %s can be written, and is not run", c.Name)
		}
	}
	if len(executions) != len(contract.All()) {
		t.Errorf("%d contracts are run, and %d can be written", len(executions), len(contract.All()))
	}
}
