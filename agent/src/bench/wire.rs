//! What client and server of the benchmark say to each other: ports, the plain protocols' heads, the gRPC messages.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;

/// Where a server takes what: six ports from a base on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    base: u16,
}

impl Default for Ports {
    /// From 8080 on.
    fn default() -> Self {
        Self { base: 8080 }
    }
}

impl Ports {
    /// Ports from `base` on; `None` if there is no room for six, or `base` is 0.
    pub fn from(base: u16) -> Option<Self> {
        (base > 0 && base <= u16::MAX - 5).then_some(Self { base })
    }

    /// HTTP/1.1.
    pub fn http1(self) -> u16 {
        self.base
    }

    /// HTTP/2 without TLS.
    pub fn h2(self) -> u16 {
        self.base + 1
    }

    /// gRPC.
    pub fn grpc(self) -> u16 {
        self.base + 2
    }

    /// Requests and responses of plain bytes.
    pub fn tcp(self) -> u16 {
        self.base + 3
    }

    /// Streams of plain bytes.
    pub fn bulk(self) -> u16 {
        self.base + 4
    }

    /// What the server has counted, as JSON by HTTP/1.1.
    pub fn stats(self) -> u16 {
        self.base + 5
    }
}

/// In front of a plain request: what follows and what is wanted. On the wire: flags (bit 0: close the connection after
/// the response), then the lengths of payload and response, each four bytes in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub(super) payload: u32,
    pub(super) response: u32,
    pub(super) is_last: bool,
}

impl RequestHead {
    pub(super) const LENGTH: usize = 9;

    pub(super) fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [u8::from(self.is_last); Self::LENGTH];
        bytes[1..5].copy_from_slice(&self.payload.to_be_bytes());
        bytes[5..].copy_from_slice(&self.response.to_be_bytes());
        bytes
    }

    pub(super) fn decode([flags, payload @ .., r0, r1, r2, r3]: [u8; Self::LENGTH]) -> Self {
        Self {
            payload: u32::from_be_bytes(payload),
            response: u32::from_be_bytes([r0, r1, r2, r3]),
            is_last: flags & 1 == 1,
        }
    }
}

/// The first byte of a bulk connection: the client sends, and the server tells in eight bytes in network order how
/// many bytes it has received, every now and then and at the end.
pub(super) const UPLOAD: u8 = b'u';
/// The first byte of a bulk connection: the server sends until the client closes.
pub(super) const DOWNLOAD: u8 = b'd';

/// The gRPC method: `service Bench { rpc Call(CallRequest) returns (CallResponse); }` in package
/// `culvert.bench.v1`.
pub(super) const METHOD: &str = "/culvert.bench.v1.Bench/Call";

/// `message CallRequest { bytes payload = 1; uint32 response_size = 2; }`
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct CallRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) payload: Bytes,
    #[prost(uint32, tag = "2")]
    pub(super) response_size: u32,
}

/// `message CallResponse { bytes payload = 1; }`
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct CallResponse {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) payload: Bytes,
}

/// The five bytes in front of a gRPC message: whether it is compressed, and its length (gRPC over HTTP/2).
const PREFIX: usize = 5;

/// A message as it goes into a body.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    // Sizes come from a command line or from a field of 32 bits.
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows: there is always room.
    let _infallible = message.encode(&mut framed);
    framed.freeze()
}

/// The one message of a body; `None` if there is none, or it is compressed, which nobody asked for, or of another type.
pub(super) fn unframed<M: Message + Default>(body: &Bytes) -> Option<M> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>()?;
    let [compressed, length @ ..] = *prefix;
    let is_whole = usize::try_from(u32::from_be_bytes(length)).ok()? == message.len();
    if compressed != 0 || !is_whole {
        return None;
    }
    M::decode(body.slice(PREFIX..)).ok()
}

/// As many bytes as are asked for, cut from one block that never changes.
pub(super) fn filler(length: usize) -> Bytes {
    /// Longer ones are rare enough to be made when asked for.
    static BLOCK: [u8; 64 * 1024] = [b'x'; 64 * 1024];
    BLOCK
        .get(..length)
        .map_or_else(|| Bytes::from(vec![b'x'; length]), Bytes::from_static)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{CallRequest, RequestHead, filler, framed, unframed};

    proptest! {
        #[test]
        fn heads_say_what_was_asked(payload: u32, response: u32, is_last: bool) {
            let head = RequestHead { payload, response, is_last };
            prop_assert_eq!(RequestHead::decode(head.encode()), head);
        }

        #[test]
        fn calls_are_found_in_their_frames(payload: Vec<u8>, response_size: u32) {
            let call = CallRequest { payload: payload.into(), response_size };
            prop_assert_eq!(unframed::<CallRequest>(&framed(&call)), Some(call));
        }

        #[test]
        fn any_bytes_are_a_call_or_none(bytes: Vec<u8>) {
            let _call = unframed::<CallRequest>(&Bytes::from(bytes));
        }
    }

    #[test]
    fn fillers_have_the_length_that_was_asked_for() {
        for length in [0, 1, 65_536, 65_537, 1 << 20] {
            assert_eq!(filler(length).len(), length);
        }
    }
}
