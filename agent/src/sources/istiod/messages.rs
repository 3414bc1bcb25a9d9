//! Messages of delta ADS (`envoy.service.discovery.v3`) and of what istiod tells node proxies over it
//! (`istio.workload`, `istio.security`).
//!
//! Only the fields that are used, numbered as in Envoy's and Istio's `.proto` files; what else a message holds is
//! skipped, as protobuf wants. Written by hand for prost (ADR 0009). Enumerations are numbers here: a value that nobody
//! knows yet has to be seen as one.

use std::collections::BTreeMap;

use prost::{Message, Oneof};

/// `envoy.service.discovery.v3.DeltaDiscoveryRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DeltaRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(super) type_url: String,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(super) initial_resource_versions: BTreeMap<String, String>,
    #[prost(string, tag = "6")]
    pub(super) response_nonce: String,
    #[prost(message, optional, tag = "7")]
    pub(super) error_detail: Option<Status>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DeltaResponse {
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(super) removed_resources: Vec<String>,
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(string, tag = "1")]
    pub(super) version: String,
    #[prost(message, optional, tag = "2")]
    pub(super) content: Option<Any>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

/// `envoy.config.core.v3.Node`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, optional, tag = "3")]
    pub(super) metadata: Option<Struct>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(super) fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`, of which texts are used.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Value {
    #[prost(string, optional, tag = "3")]
    pub(super) text: Option<String>,
}

/// `istio.workload.Address`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Address {
    #[prost(oneof = "AddressKind", tags = "1, 2")]
    pub(super) kind: Option<AddressKind>,
}

/// What an address is.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum AddressKind {
    #[prost(message, tag = "1")]
    Workload(Box<Workload>),
    #[prost(message, tag = "2")]
    Service(Box<Service>),
}

/// `istio.workload.Service`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Service {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
    #[prost(string, tag = "3")]
    pub(super) hostname: String,
    #[prost(message, repeated, tag = "4")]
    pub(super) addresses: Vec<NetworkAddress>,
    #[prost(message, repeated, tag = "5")]
    pub(super) ports: Vec<Port>,
    #[prost(string, repeated, tag = "6")]
    pub(super) subject_alt_names: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub(super) waypoint: Option<GatewayAddress>,
    #[prost(message, optional, tag = "8")]
    pub(super) load_balancing: Option<LoadBalancing>,
    #[prost(int32, tag = "9")]
    pub(super) ip_families: i32,
    #[prost(bool, tag = "11")]
    pub(super) canonical: bool,
    #[prost(int32, tag = "14")]
    pub(super) visibility: i32,
}

/// `istio.workload.LoadBalancing`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LoadBalancing {
    #[prost(int32, repeated, tag = "1")]
    pub(super) routing_preference: Vec<i32>,
    #[prost(int32, tag = "2")]
    pub(super) mode: i32,
    #[prost(int32, tag = "3")]
    pub(super) health_policy: i32,
}

/// `istio.workload.Workload`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Workload {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub(super) addresses: Vec<Vec<u8>>,
    #[prost(string, tag = "4")]
    pub(super) network: String,
    #[prost(int32, tag = "5")]
    pub(super) tunnel_protocol: i32,
    #[prost(string, tag = "6")]
    pub(super) trust_domain: String,
    #[prost(string, tag = "7")]
    pub(super) service_account: String,
    #[prost(message, optional, tag = "8")]
    pub(super) waypoint: Option<GatewayAddress>,
    #[prost(string, tag = "9")]
    pub(super) node: String,
    #[prost(string, tag = "10")]
    pub(super) canonical_name: String,
    #[prost(string, tag = "11")]
    pub(super) canonical_revision: String,
    #[prost(int32, tag = "12")]
    pub(super) owner_type: i32,
    #[prost(string, tag = "13")]
    pub(super) owner_name: String,
    #[prost(string, repeated, tag = "16")]
    pub(super) authorization_policies: Vec<String>,
    #[prost(int32, tag = "17")]
    pub(super) status: i32,
    #[prost(string, tag = "18")]
    pub(super) cluster_id: String,
    #[prost(string, tag = "20")]
    pub(super) uid: String,
    #[prost(string, tag = "21")]
    pub(super) hostname: String,
    #[prost(btree_map = "string, message", tag = "22")]
    pub(super) services: BTreeMap<String, PortList>,
    #[prost(message, optional, tag = "23")]
    pub(super) application_tunnel: Option<ApplicationTunnel>,
    #[prost(message, optional, tag = "24")]
    pub(super) locality: Option<Locality>,
    #[prost(int32, tag = "25")]
    pub(super) network_mode: i32,
    #[prost(message, optional, tag = "27")]
    pub(super) capacity: Option<UInt32Value>,
}

/// `istio.workload.ApplicationTunnel`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ApplicationTunnel {
    #[prost(int32, tag = "1")]
    pub(super) protocol: i32,
    #[prost(uint32, tag = "2")]
    pub(super) port: u32,
}

/// `google.protobuf.UInt32Value`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct UInt32Value {
    #[prost(uint32, tag = "1")]
    pub(super) value: u32,
}

/// `istio.workload.Locality`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Locality {
    #[prost(string, tag = "1")]
    pub(super) region: String,
    #[prost(string, tag = "2")]
    pub(super) zone: String,
    #[prost(string, tag = "3")]
    pub(super) subzone: String,
}

/// `istio.workload.PortList`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PortList {
    #[prost(message, repeated, tag = "1")]
    pub(super) ports: Vec<Port>,
}

/// `istio.workload.Port`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Port {
    #[prost(uint32, tag = "1")]
    pub(super) service: u32,
    #[prost(uint32, tag = "2")]
    pub(super) target: u32,
    #[prost(int32, tag = "3")]
    pub(super) app_protocol: i32,
}

/// `istio.workload.GatewayAddress`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GatewayAddress {
    #[prost(message, optional, tag = "1")]
    pub(super) hostname: Option<NamespacedHostname>,
    #[prost(message, optional, tag = "2")]
    pub(super) address: Option<NetworkAddress>,
    #[prost(uint32, tag = "3")]
    pub(super) hbone_mtls_port: u32,
}

/// `istio.workload.NetworkAddress`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NetworkAddress {
    #[prost(string, tag = "1")]
    pub(super) network: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) address: Vec<u8>,
    #[prost(uint32, optional, tag = "3")]
    pub(super) length: Option<u32>,
}

/// `istio.workload.NamespacedHostname`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NamespacedHostname {
    #[prost(string, tag = "1")]
    pub(super) namespace: String,
    #[prost(string, tag = "2")]
    pub(super) hostname: String,
}

/// `istio.security.Authorization`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Authorization {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
    #[prost(int32, tag = "3")]
    pub(super) scope: i32,
    #[prost(int32, tag = "4")]
    pub(super) action: i32,
    #[prost(message, repeated, tag = "5")]
    pub(super) groups: Vec<Group>,
    #[prost(bool, tag = "6")]
    pub(super) dry_run: bool,
}

/// `istio.security.Group`: AND of its rules.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Group {
    #[prost(message, repeated, tag = "1")]
    pub(super) rules: Vec<Rules>,
}

/// `istio.security.Rules`: OR of its matches.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Rules {
    #[prost(message, repeated, tag = "2")]
    pub(super) matches: Vec<Match>,
}

/// `istio.security.Match`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Match {
    #[prost(message, repeated, tag = "1")]
    pub(super) namespaces: Vec<StringMatch>,
    #[prost(message, repeated, tag = "2")]
    pub(super) not_namespaces: Vec<StringMatch>,
    #[prost(message, repeated, tag = "3")]
    pub(super) principals: Vec<StringMatch>,
    #[prost(message, repeated, tag = "4")]
    pub(super) not_principals: Vec<StringMatch>,
    #[prost(message, repeated, tag = "5")]
    pub(super) source_ips: Vec<Cidr>,
    #[prost(message, repeated, tag = "6")]
    pub(super) not_source_ips: Vec<Cidr>,
    #[prost(message, repeated, tag = "7")]
    pub(super) destination_ips: Vec<Cidr>,
    #[prost(message, repeated, tag = "8")]
    pub(super) not_destination_ips: Vec<Cidr>,
    #[prost(uint32, repeated, tag = "9")]
    pub(super) destination_ports: Vec<u32>,
    #[prost(uint32, repeated, tag = "10")]
    pub(super) not_destination_ports: Vec<u32>,
    #[prost(message, repeated, tag = "11")]
    pub(super) service_accounts: Vec<ServiceAccountMatch>,
    #[prost(message, repeated, tag = "12")]
    pub(super) not_service_accounts: Vec<ServiceAccountMatch>,
}

/// `istio.security.Address`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Cidr {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) address: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(super) length: u32,
}

/// `istio.security.ServiceAccountMatch`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ServiceAccountMatch {
    #[prost(string, tag = "1")]
    pub(super) namespace: String,
    #[prost(string, tag = "2")]
    pub(super) service_account: String,
}

/// `istio.security.StringMatch`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StringMatch {
    #[prost(oneof = "StringMatchKind", tags = "1, 2, 3, 4")]
    pub(super) kind: Option<StringMatchKind>,
}

/// How a text is matched.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum StringMatchKind {
    #[prost(string, tag = "1")]
    Exact(String),
    #[prost(string, tag = "2")]
    Prefix(String),
    #[prost(string, tag = "3")]
    Suffix(String),
    #[prost(message, tag = "4")]
    Presence(Empty),
}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Empty {}
