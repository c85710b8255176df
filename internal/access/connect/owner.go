package connect

import (
	"context"
	"net/http"

	"google.golang.org/grpc"
)

// Owner makes calls as the owner of a data folder, over its loopback addresses. The
// credential is read at each call, so the control plane may start later. Commands
// use the socket instead, where nobody could stand in for the control plane.
func Owner(dataDir string) grpc.DialOption {
	return grpc.WithPerRPCCredentials(ownerFile(CredentialFile(dataDir)))
}

type ownerFile string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (f ownerFile) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	token, err := ReadToken(string(f), nil)
	if err != nil {
		return nil, err
	}
	return Bearer(token).GetRequestMetadata(ctx, uri...)
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (ownerFile) RequireTransportSecurity() bool { return false }

// AsOwner makes an HTTP request one of the owner of a data folder.
func AsOwner(r *http.Request, dataDir string) error {
	token, err := ReadToken(CredentialFile(dataDir), nil)
	if err == nil {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return err
}
