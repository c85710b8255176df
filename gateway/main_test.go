package gateway_test

import (
	"os"
	"testing"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
)

// TestMain gives the tests of this package the policies, which import it.
func TestMain(m *testing.M) {
	gateway.UseModel(policies.Model())
	os.Exit(m.Run())
}
