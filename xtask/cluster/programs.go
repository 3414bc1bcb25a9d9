//go:build programs

// Package cluster names what is built or read out of other modules, so that go.mod keeps them.
package cluster

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "istio.io/api/networking/v1"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)
