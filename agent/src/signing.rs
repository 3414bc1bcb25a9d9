//! What a mesh's certificate authority is asked, and what it answers: `istio.v1.auth.IstioCertificateService` of
//! istio.io/api `security/v1alpha1/ca.proto`, as values. Asked by agents, answered by istiod, istio-csr and our
//! controller.
//!
//! The messages are written by hand for prost (ADR 0009); fields that are not used are skipped.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

/// The one method of the service, as a path.
pub const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// What both sides declare to send.
pub const CONTENT_TYPE: &str = "application/grpc";
/// Longest message in either direction: a chain of a few certificates, or a bundle of roots.
pub const MOST_BYTES: usize = 256 * 1024;

/// Under this name the metadata say for whom a node's agent asks (istiod's node authorizer).
const IMPERSONATED: &str = "ImpersonatedIdentity";
/// Bytes before a gRPC message: compressed or not, and its length.
const PREFIX: usize = 5;

/// What an agent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The signing request, in PEM.
    pub csr: String,
    /// How long the certificate shall be valid; zero: as the authority likes.
    pub lifetime: Duration,
    /// The SPIFFE ID that is asked for, where it is not the caller's own.
    pub identity: Option<String>,
}

/// Bytes that are no message of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is not one of IstioCertificateService")]
pub struct Malformed;

/// Why a call failed (gRPC's status codes; those that this service answers with).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The request itself will not do.
    InvalidArgument = 3,
    /// The caller is known, and may not have this.
    PermissionDenied = 7,
    /// The server has no time, or not this often.
    ResourceExhausted = 8,
    /// There is no such method.
    Unimplemented = 12,
    /// The server's fault.
    Internal = 13,
    /// Not now.
    Unavailable = 14,
    /// The caller is not known.
    Unauthenticated = 16,
}

impl Question {
    /// As it goes over the wire, framed.
    pub fn framed(&self) -> Bytes {
        let metadata = self.identity.clone().map(|identity| Struct {
            fields: BTreeMap::from([(
                IMPERSONATED.to_owned(),
                Value {
                    text: Some(identity),
                },
            )]),
        });
        framed(&Request {
            csr: self.csr.clone(),
            validity_duration: i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata,
        })
    }

    /// Reads a framed one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let request = Request::decode(unframed(body)?).map_err(|_error| Malformed)?;
        let seconds = u64::try_from(request.validity_duration).unwrap_or_default();
        let metadata = request.metadata.unwrap_or_default();
        let identity = metadata.fields.get(IMPERSONATED);
        Ok(Self {
            csr: request.csr,
            lifetime: Duration::from_secs(seconds),
            identity: identity.and_then(|value| value.text.clone()),
        })
    }
}

/// An answer, framed: certificates in PEM, the leaf first, the roots last.
pub fn framed_chain(chain: Vec<String>) -> Bytes {
    framed(&Response { cert_chain: chain })
}

/// Reads a framed answer.
///
/// # Errors
/// [`Malformed`].
pub fn read_chain(body: &[u8]) -> Result<Vec<String>, Malformed> {
    let response = Response::decode(unframed(body)?).map_err(|_error| Malformed)?;
    Ok(response.cert_chain)
}

/// A message as gRPC frames it, uncompressed (gRPC over HTTP/2, "Length-Prefixed-Message").
fn framed(message: &impl prost::Message) -> Bytes {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = Vec::with_capacity(PREFIX + message.len());
    framed.push(0);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// The one message of a body. Nobody was told that it may be compressed.
fn unframed(body: &[u8]) -> Result<&[u8], Malformed> {
    let (prefix, message) = body.split_at_checked(PREFIX).ok_or(Malformed)?;
    let length = u32::try_from(message.len()).map_err(|_error| Malformed)?;
    let is_whole = prefix.first() == Some(&0) && prefix.get(1..) == Some(&length.to_be_bytes()[..]);
    is_whole.then_some(message).ok_or(Malformed)
}

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, prost::Message)]
struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`, of which only texts are read.
#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, optional, tag = "3")]
    text: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_what_arrives() {
        for identity in [None, Some("spiffe://cluster.local/ns/a/sa/b".to_owned())] {
            let question = Question {
                csr: "pem".to_owned(),
                lifetime: Duration::from_secs(86_400),
                identity,
            };
            assert_eq!(Question::read(&question.framed()), Ok(question));
        }
        let chain = vec!["leaf".to_owned(), "root".to_owned()];
        assert_eq!(read_chain(&framed_chain(chain.clone())), Ok(chain));
    }

    #[test]
    fn the_wire_is_istios() {
        let question = Question {
            csr: "c".to_owned(),
            lifetime: Duration::from_secs(1),
            identity: Some("s".to_owned()),
        };
        // csr = 1, validity_duration = 3, metadata = 4 { fields = 1 { key = 1, value = 2 { string_value = 3 } } }.
        let mut expected = vec![0x0a, 1, b'c', 0x18, 1, 0x22, 29, 0x0a, 27, 0x0a, 20];
        expected.extend_from_slice(b"ImpersonatedIdentity");
        expected.extend_from_slice(&[0x12, 3, 0x1a, 1, b's']);
        assert_eq!(question.framed()[PREFIX..], expected);
        assert_eq!(question.framed()[..PREFIX], [0, 0, 0, 0, 36]);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for body in [
            &b""[..],
            &[0, 0, 0, 0],
            // Compressed; longer and shorter than it says; not protobuf.
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 0, 2, 0x0a],
            &[0, 0, 0, 0, 0, 0x0a],
            &[0, 0, 0, 0, 1, 0xff],
        ] {
            assert_eq!(Question::read(body), Err(Malformed), "{body:?}");
            assert_eq!(read_chain(body), Err(Malformed), "{body:?}");
        }
        // A time before now, and values that are no texts, say nothing.
        let odd = [
            0, 0, 0, 0, 11, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ];
        assert_eq!(Question::read(&odd).unwrap().lifetime, Duration::ZERO);
    }
}
