//! What fuzz targets reach of the wire format.

use hickory_proto::op::{Message, ResponseCode};

use super::wire;

/// Whether a resolver's datagram is taken for the answer to a query.
pub fn is_reply(query: &[u8], reply: &[u8]) -> bool {
    wire::is_reply(query, reply)
}

/// The datagram that refuses a query, and the most that its sender takes.
pub fn refusal(query: &Message) -> (Option<Vec<u8>>, usize) {
    let limit = wire::datagram_limit(query);
    let refusal = wire::failure(query, ResponseCode::ServFail);
    (wire::encode(&refusal, limit), limit)
}
