package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"context"

	"github.com/penstock-gateway/penstock/gateway"
)

// TestKindsOverREST asks for each kind by REST. Nothing answers behind it, so a kind that is
// there is unavailable, and one without a handler is not found.
func TestKindsOverREST(t *testing.T) {
	conn, err := grpc.NewClient("unix://"+t.TempDir()+"/nobody", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h, err := REST(t.Context(), conn, func(context.Context, *http.Request) metadata.MD { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, collection := range gateway.Collections() {
		methods := gateway.KindFor(collection).Service.Methods()
		for i := range methods.Len() {
			rule, _ := proto.GetExtension(methods.Get(i).Options(), annotations.E_Http).(*annotations.HttpRule)
			if rule.GetGet() == "" {
				continue
			}
			path := strings.NewReplacer("{name=projects/*/", "projects/p/", "{parent=projects/*}", "projects/p", "/*}", "/x").Replace(rule.GetGet())
			answer := httptest.NewRecorder()
			h.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
			if answer.Code != http.StatusServiceUnavailable {
				t.Errorf("GET %s is answered with %d: %s", path, answer.Code, answer.Body)
			}
		}
	}
}
