//go:build programs

// Package istio names what is built out of Istio's module, so that go.mod keeps it.
package istio

import (
	_ "istio.io/istio/istioctl/cmd/istioctl"
	_ "istio.io/istio/pilot/cmd/pilot-discovery"
)
