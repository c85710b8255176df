package gateway

import (
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Defaults of policies that nobody set. They stand here so that the policies,
// which compile them, and explain, which prints them, agree. The comments of the
// protos name the same values.
const (
	// DefaultRequestTimeout bounds the time until the response of a backend begins.
	DefaultRequestTimeout = 15 * time.Second
	// DefaultTryTimeout bounds a try of an idempotent request that another endpoint may
	// answer: three of them, the retries included, take DefaultRequestTimeout.
	DefaultTryTimeout = DefaultRequestTimeout / (1 + DefaultRetryAttempts)
	// DefaultIdleTimeout bounds the time without a byte in either direction.
	DefaultIdleTimeout = 300 * time.Second
	// DefaultUploadTimeout bounds how long a request may take to arrive.
	DefaultUploadTimeout = time.Hour
	// DefaultRetryAttempts is the number of retries beside the first try, for
	// either group of methods.
	DefaultRetryAttempts = 2
	// DefaultClockSkew is the difference of clocks that is forgiven to a token.
	DefaultClockSkew = 30 * time.Second
	// DefaultMaxLifetime is the longest time from now to a token's expiry.
	DefaultMaxLifetime = 24 * time.Hour
	// DefaultConnectTimeout bounds the making of a connection to a backend.
	DefaultConnectTimeout = 5 * time.Second
	// DefaultFunctionTimeout bounds one invocation of a function.
	DefaultFunctionTimeout = 30 * time.Second
	// DefaultStartTimeout bounds the time from the start of an instance to ready.
	DefaultStartTimeout = 30 * time.Second
	// DefaultInstances is the number of instances of a function.
	DefaultInstances = 1
	// DefaultRedirectStatus is the status of a redirect.
	DefaultRedirectStatus = 302
	// DefaultListenerAddress is bound when a listener names no address.
	DefaultListenerAddress = "0.0.0.0"
)

// IdempotentMethods are the methods that the idempotent retry rule is for: those
// that RFC 9110, section 9.2.2, defines as idempotent, without TRACE, which the
// edge refuses.
func IdempotentMethods() []string { return []string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE"} }

// DefaultIdempotentRetryOn are the conditions on which idempotent requests are
// retried by default. Where there is one endpoint alone (see Alone), a request that it
// did not answer is not sent to it again: it would take as long once more.
func DefaultIdempotentRetryOn(alone bool) []pb.RetryOn {
	if alone {
		return DefaultOtherRetryOn()
	}
	return append(DefaultOtherRetryOn(), pb.RetryOn_RETRY_ON_RESET)
}

// DefaultOtherRetryOn are the conditions on which all other requests are retried
// by default: those that show that the request was never sent.
func DefaultOtherRetryOn() []pb.RetryOn {
	return []pb.RetryOn{
		pb.RetryOn_RETRY_ON_CONNECT_FAILURE, pb.RetryOn_RETRY_ON_REFUSED_STREAM, pb.RetryOn_RETRY_ON_RESET_BEFORE_REQUEST,
	}
}
