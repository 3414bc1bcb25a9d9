//go:build programs

// Package helm names the program, so that go.mod keeps its module.
package helm

import _ "helm.sh/helm/v3/cmd/helm"
