package main

import "strings"

// responseFlags are Envoy's response flags in words. See RESPONSE_FLAGS in
// https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/observability/access_log/usage
var responseFlags = map[string]string{
	"DC":    "the client closed the connection",
	"DF":    "the name of the backend could not be resolved",
	"DI":    "a delay was injected",
	"DO":    "dropped, as the endpoints asked for less load",
	"DPE":   "the client sent what is not valid HTTP",
	"DR":    "the client reset the stream",
	"DT":    "the connection or the stream reached its maximum duration",
	"FI":    "a fault was injected",
	"IH":    "a header for Envoy was not valid",
	"LH":    "the local service failed its health check",
	"LR":    "the gateway reset the request to the endpoint",
	"NC":    "the route leads to a backend that the proxy does not have",
	"NFCF":  "the configuration of a filter has not arrived",
	"NR":    "no route",
	"OM":    "the proxy is overloaded",
	"RFCF":  "the answer came from the cache",
	"RL":    "over the rate limit",
	"RLSE":  "the limiter failed",
	"SI":    "the stream was idle for too long",
	"UAEX":  "refused by the authorization service",
	"UC":    "the endpoint closed the connection",
	"UDO":   "dropped, as all requests to this backend are",
	"UF":    "the connection to the endpoint failed",
	"UH":    "no healthy endpoint",
	"UMSDR": "the stream reached its maximum duration",
	"UO":    "over the limit of connections or requests to the backend",
	"UPE":   "the endpoint sent what is not valid HTTP",
	"UR":    "the endpoint reset the stream",
	"URX":   "no try is left",
	"UT":    "the backend did not answer in time",
}

// flagWords is what a list of response flags, as in "URX,UF", means.
func flagWords(flags string) string {
	var out []string
	for flag := range strings.SplitSeq(flags, ",") {
		words := responseFlags[strings.TrimSpace(flag)]
		if words == "" {
			words = "a flag that this penstock does not know"
		}
		out = append(out, words)
	}
	return strings.Join(out, "; ")
}
