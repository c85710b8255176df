package gateway

import "time"

// Defaults of what nobody set. They stand here so that the compiler and explain, which
// prints them, agree. The comments of the protos name the same values. Those of policies
// stand in their folders.
const (
	// DefaultUploadTimeout bounds how long a request may take to arrive.
	DefaultUploadTimeout = time.Hour
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
