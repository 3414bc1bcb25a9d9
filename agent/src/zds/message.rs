//! Messages of `istio.workload.zds`, numbered as in Istio's `zds.proto`. Written by hand for prost (ADR 0009).

use prost::{Message, Oneof};

/// The version of the protocol that is spoken here, `V1`.
pub(super) const VERSION: i32 = 1;

/// `ZdsHello`: the first packet, from the proxy.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Hello {
    #[prost(int32, tag = "1")]
    pub(super) version: i32,
}

/// `WorkloadRequest`: what istio-cni says.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WorkloadRequest {
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    pub(super) payload: Option<Payload>,
}

/// `WorkloadRequest.payload`.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Payload {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

/// `AddWorkload`: comes with a descriptor of the network namespace.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AddWorkload {
    #[prost(string, tag = "1")]
    pub(super) uid: String,
    #[prost(message, optional, tag = "2")]
    pub(super) workload_info: Option<WorkloadInfo>,
}

/// `WorkloadInfo`. The service account (3) is the API server's to say.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WorkloadInfo {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
}

/// `DelWorkload`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DelWorkload {
    #[prost(string, tag = "2")]
    pub(super) uid: String,
}

/// `KeepWorkload`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeepWorkload {
    #[prost(string, tag = "1")]
    pub(super) uid: String,
}

/// `SnapshotSent`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SnapshotSent {}

/// `WorkloadResponse`: the answer to each request.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WorkloadResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) ack: Option<Ack>,
}

/// `Ack`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Ack {
    /// Empty for yes.
    #[prost(string, tag = "1")]
    pub(super) error: String,
}
