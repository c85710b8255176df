package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// upPruneSet names what --config applied, so that what is no longer in the files
// is deleted with their next change.
const upPruneSet = "up"

// configFiles is the content of --config.
type configFiles struct {
	request *pb.ApplyRequest // nil: no --config
	set     *file.Set
	hash    string
}

func loadConfig(paths []string) (*configFiles, error) {
	c := &configFiles{}
	if len(paths) == 0 {
		return c, nil
	}
	var err error
	if c.request, c.set, err = (&fileFlags{paths: paths, offline: true}).request(context.Background(), &clientFlags{project: defaultProject}); err != nil {
		return nil, err
	}
	c.request.PruneSet = upPruneSet
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.request)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	c.hash = hex.EncodeToString(sum[:])
	return c, nil
}

func (c *configFiles) hashFile(dataDir string) string { return filepath.Join(dataDir, "config.sha256") }

// changed reports whether the files differ from what was applied the last time.
func (c *configFiles) changed(dataDir string) bool {
	old, err := os.ReadFile(c.hashFile(dataDir))
	return err != nil || string(bytes.TrimSpace(old)) != c.hash
}

// path is one that the configuration routes, for trying out: "/" when it names none.
func (c *configFiles) path() string {
	for _, r := range c.request.GetResources() {
		for _, rule := range r.GetRoute().GetRules() {
			for _, m := range rule.GetMatches() {
				if p := m.GetPath().GetPrefix() + m.GetPath().GetExact(); p != "" && r.GetRoute().GetPolicies().GetAuthentication() == nil {
					return p
				}
			}
		}
	}
	return "/"
}

// rootFile, in the data folder, holds the folder of functions of the last start that
// named one: the functions of the store are looked for there again.
const rootFile = "functions-root"

// keptRoot is functionsRoot, or that of the start before when nothing says another.
func keptRoot(f upFlags, resources []*pb.Resource) (string, error) {
	if f.functionsRoot == "" && len(f.config) == 0 {
		b, err := os.ReadFile(filepath.Join(f.dataDir, rootFile))
		root := strings.TrimSpace(string(b))
		if info, statErr := os.Stat(root); err == nil && statErr == nil && info.IsDir() {
			return root, nil
		}
	}
	return functionsRoot(f, resources)
}

// keepRoot notes the folder of functions for the next start.
func (f *upFlags) keepRoot() error {
	return replaceFile(filepath.Join(f.dataDir, rootFile), []byte(f.functionsRoot+"\n"), 0o600)
}

// functionsRoot is the absolute folder that sources of functions are relative to:
// what the flag says, else the folder of the first --config or, as projects are
// laid out, a folder "functions" in it or beside it: the first in which all sources
// of the files are. Without --config it is the working folder.
func functionsRoot(f upFlags, resources []*pb.Resource) (string, error) {
	if f.functionsRoot != "" || len(f.config) == 0 {
		return filepath.Abs(f.functionsRoot)
	}
	dir := f.config[0]
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		dir = filepath.Dir(dir)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for _, root := range []string{dir, filepath.Join(dir, "functions"), filepath.Join(filepath.Dir(dir), "functions")} {
		missing := slices.ContainsFunc(resources, func(r *pb.Resource) bool {
			source := r.GetFunction().GetSource()
			if source == "" {
				return false
			}
			_, err := os.Stat(filepath.Join(root, source))
			return err != nil
		})
		if !missing {
			return root, nil
		}
	}
	return dir, nil // the runner says which source is missing
}

// configure applies what `up` itself gives (the gateway's listener, the keys of
// the development issuer) and the files of --config.
func (u *up) configure(ctx context.Context) error {
	cf := clientFlags{Where: connect.Where{DataDir: u.f.dataDir}, project: "default", output: "text", source: "up"}
	ctx, conn, err := cf.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	gw, err := u.gateway(ctx, pb.NewGatewayServiceClient(conn))
	if err != nil {
		return err
	}
	issuer, err := newDevIssuerSecret(ctx, pb.NewDevTokenServiceClient(conn))
	if err != nil {
		return err
	}
	config := pb.NewConfigServiceClient(conn)
	// No proxy runs yet that could be waited for.
	options := &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE, Message: "penstock up"}
	resources := []*pb.Resource{{Kind: &pb.Resource_Secret{Secret: issuer}}}
	if gw != nil {
		resources = append(resources, &pb.Resource{Kind: &pb.Resource_Gateway{Gateway: gw}})
	}
	if _, err := config.Apply(ctx, &pb.ApplyRequest{Options: options, Resources: resources}); err != nil {
		return fmt.Errorf("apply the gateway: %s", describeError(err))
	}
	if u.config.request == nil || !u.config.changed(u.f.dataDir) {
		return nil
	}
	req := proto.CloneOf(u.config.request)
	req.Options = &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE, Message: "penstock up: --config changed"}
	resp, err := config.Apply(ctx, req)
	if err != nil {
		return fmt.Errorf("apply --config: %s", describeError(located(u.config.set, err)))
	}
	u.log.Info("applied --config", "resources", len(req.GetResources()), "changes", len(resp.GetChanges()), "revision", resp.GetResult().GetRevision())
	return replaceFile(u.config.hashFile(u.f.dataDir), []byte(u.config.hash+"\n"), 0o600)
}

// gateway returns the stored gateway, or a new one, with the listener "http" where
// --gateway-listen says; nil when it is so already. Whatever else somebody
// configured on it stays.
func (u *up) gateway(ctx context.Context, c pb.GatewayServiceClient) (*pb.Gateway, error) {
	resp, err := c.GetGateway(ctx, &pb.GetGatewayRequest{Name: upGateway})
	if err != nil && status.Code(err) != codes.NotFound {
		return nil, fmt.Errorf("read %s: %s", upGateway, describeError(err))
	}
	host, port, err := net.SplitHostPort(u.f.gateway)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("--gateway-listen: %w", err)
	}
	gw := &pb.Gateway{Name: upGateway}
	if old := resp.GetGateway(); old != nil {
		gw = proto.CloneOf(old)
	}
	// Times and etag are the server's.
	gw.Status = nil
	gw.Metadata = &pb.Metadata{
		Labels: gw.GetMetadata().GetLabels(), Annotations: gw.GetMetadata().GetAnnotations(), Origin: &pb.Origin{Source: "up"},
	}
	i := slices.IndexFunc(gw.GetListeners(), func(l *pb.Listener) bool { return l.GetName() == "http" })
	switch {
	case i < 0:
		gw.Listeners = append(gw.Listeners, &pb.Listener{Name: "http", Address: host, Port: uint32(n), Protocol: pb.ListenerProtocol_LISTENER_PROTOCOL_HTTP})
	case gw.Listeners[i].GetAddress() == host && gw.Listeners[i].GetPort() == uint32(n):
		return nil, nil
	default:
		gw.Listeners[i].Address, gw.Listeners[i].Port = host, uint32(n)
	}
	return gw, nil
}
