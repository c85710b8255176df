// Jaeger's memory store, with its query API and an OTLP receiver, each on a Unix socket
// of its own user. Jaeger all-in-one listens on a dozen TCP and UDP ports that ask
// nobody who he is (docs/decisions/0037); this is the part of it that `penstock up` uses.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jaegertracing/jaeger/cmd/collector/app/sanitizer"
	"github.com/jaegertracing/jaeger/cmd/query/app"
	"github.com/jaegertracing/jaeger/cmd/query/app/querysvc"
	"github.com/jaegertracing/jaeger/pkg/tenancy"
	"github.com/jaegertracing/jaeger/plugin/storage/memory"
	translator "github.com/open-telemetry/opentelemetry-collector-contrib/pkg/translator/jaeger"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"google.golang.org/grpc"
)

// maxMessage bounds one call of the relay, whose batches are smaller.
const maxMessage = 16 << 20

func main() {
	log.SetFlags(0)
	query := flag.String("query-socket", "", "path of the socket of the query API (HTTP)")
	otlp := flag.String("otlp-socket", "", "path of the socket that takes spans (OTLP over gRPC)")
	traces := flag.Int("max-traces", 20000, "how many traces are kept")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *query, *otlp, *traces); err != nil {
		log.Fatal("error: ", err)
	}
}

func run(ctx context.Context, query, otlp string, traces int) error {
	// The sockets are for this user alone from their first moment.
	syscall.Umask(0o177)
	q, err := listen(query)
	if err != nil {
		return err
	}
	o, err := listen(otlp)
	if err != nil {
		return err
	}
	store := memory.WithConfiguration(memory.Configuration{MaxTraces: traces})
	pages := &http.Server{Handler: api(store), ReadHeaderTimeout: 10 * time.Second}
	spans := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	ptraceotlp.RegisterGRPCServer(spans, &receiver{store: store, clean: sanitizer.NewChainedSanitizer(sanitizer.NewStandardSanitizers()...)})

	ended := make(chan error, 2)
	go func() { ended <- pages.Serve(q) }()
	go func() { ended <- spans.Serve(o) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	spans.Stop()
	return errors.Join(err, pages.Close())
}

// listen takes the place of a socket that a process before left.
func listen(path string) (net.Listener, error) {
	if path == "" {
		return nil, errors.New("-query-socket and -otlp-socket are needed")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

// api is what Jaeger's query service answers below /api.
func api(store *memory.Store) http.Handler {
	router := app.NewRouter()
	service := querysvc.NewQueryService(store, store, querysvc.QueryServiceOptions{})
	app.NewAPIHandler(service, tenancy.NewManager(&tenancy.Options{})).RegisterRoutes(router)
	return router
}

// receiver writes the spans that it is sent.
type receiver struct {
	ptraceotlp.UnimplementedGRPCServer
	// mu: the sanitizers are made for one collector's queue.
	mu    sync.Mutex
	store *memory.Store
	clean sanitizer.SanitizeSpan
}

func (r *receiver) Export(ctx context.Context, request ptraceotlp.ExportRequest) (ptraceotlp.ExportResponse, error) {
	batches, err := translator.ProtoFromTraces(request.Traces())
	if err != nil {
		return ptraceotlp.NewExportResponse(), fmt.Errorf("spans that Jaeger cannot hold: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, batch := range batches {
		for _, span := range batch.Spans {
			if span.Process == nil {
				span.Process = batch.Process
			}
			if err := r.store.WriteSpan(ctx, r.clean(span)); err != nil {
				return ptraceotlp.NewExportResponse(), err
			}
		}
	}
	return ptraceotlp.NewExportResponse(), nil
}
