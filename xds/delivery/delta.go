package delivery

import (
	"strconv"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// delta is the incremental variant, which is the ledger's own.
type delta struct {
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
}

func (d delta) recv() (request, error) { return d.stream.Recv() }

func (d delta) read(q request, _ *ledger.Proxy, _ *ledger.Table) (ledger.Request, bool) {
	req := q.(*discoveryv3.DeltaDiscoveryRequest)
	return ledger.Request{
		Type: xds.Type(req.GetTypeUrl()), Nonce: req.GetResponseNonce(),
		Refused: req.GetErrorDetail() != nil, Detail: req.GetErrorDetail().GetMessage(),
		Subscribe: req.GetResourceNamesSubscribe(), Unsubscribe: req.GetResourceNamesUnsubscribe(),
		Initial: req.GetInitialResourceVersions(),
	}, true
}

func (d delta) write(r *ledger.Response, _ *ledger.Proxy, _ time.Time) func() error {
	return func() error {
		out := &discoveryv3.DeltaDiscoveryResponse{
			TypeUrl: string(r.Type), Nonce: r.Nonce, RemovedResources: r.Removed,
			// For people and tools: the protocol goes by the version of each resource.
			SystemVersionInfo: strconv.FormatInt(r.Revision, 10),
		}
		if len(r.Resources) > 0 {
			// One allocation for all: there may be ten thousand.
			all := make([]discoveryv3.Resource, len(r.Resources))
			out.Resources = make([]*discoveryv3.Resource, len(r.Resources))
			for i, res := range r.Resources {
				all[i].Name, all[i].Version, all[i].Resource = res.Name, res.Version, res.Body
				out.Resources[i] = &all[i]
			}
		}
		return d.stream.Send(out)
	}
}

func (d delta) held(*ledger.Proxy, time.Time) (func() error, time.Time) { return nil, time.Time{} }
