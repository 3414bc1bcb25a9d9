//! A two-node cluster in network namespaces, and what scenarios need to drive it: servers, clients, a packet
//! capture, and Bookinfo.
//!
//! Needs root and the built `culvert` program; links nothing of it.

pub mod authority;
pub mod authorizer;
pub mod bench;
pub mod bookinfo;
pub mod collector;
pub mod echo;
pub mod envoy;
pub mod gateway_conformance;
pub mod istio_cni;
pub mod jwt;
pub mod keys;
pub mod kubectl;
pub mod kubelet;
pub mod kubernetes;
pub mod lab;
pub mod net;
pub mod rate_limiter;
pub mod runtime;
pub mod sandwich;
pub mod scenario;
pub mod seed;
pub mod shop;
pub mod tls;
pub mod traffic;
