//! Bytes that a pod or a resolver sent. Nothing in here may panic, whatever they are.

#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};

/// Fixed part of every message (RFC 1035 §4.1.1).
const HEADER_BYTES: usize = 12;

/// What fits into a datagram of a client that does not say more (RFC 1035 §4.2.1).
const PLAIN_UDP_BYTES: u16 = 512;

/// More than this is not sent in one datagram, whatever the client says: it can ask over TCP.
const MAX_UDP_BYTES: u16 = 4096;

/// What a client sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    /// A message that can be looked at.
    Query(Box<Message>),
    /// Not a message, but enough of one to say so: this is the reply.
    Malformed(Vec<u8>),
    /// Nothing that may be answered: a reply would feed a loop or a reflection.
    Nothing,
}

/// Reads what a client sent.
pub fn receive(bytes: &[u8]) -> Received {
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        return Received::Nothing;
    };
    let is_response = header.get(2).is_none_or(|flags| flags & 0x80 != 0);
    if is_response {
        return Received::Nothing;
    }
    match Message::from_vec(bytes) {
        Ok(message) if message.metadata.message_type == MessageType::Query => {
            Received::Query(Box::new(message))
        }
        Ok(_response) => Received::Nothing,
        Err(_malformed) => error(id(bytes).unwrap_or_default(), ResponseCode::FormErr)
            .map_or(Received::Nothing, Received::Malformed),
    }
}

/// The reply to `query` that says only what went wrong.
pub(super) fn failure(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::error_msg(query.metadata.id, query.metadata.op_code, code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    reply
}

fn error(id: u16, code: ResponseCode) -> Option<Vec<u8>> {
    Message::error_msg(id, OpCode::Query, code).to_vec().ok()
}

/// How many bytes a datagram to this client may have.
pub(super) fn datagram_limit(query: &Message) -> usize {
    let says = query
        .edns
        .as_ref()
        .map_or(PLAIN_UDP_BYTES, Edns::max_payload);
    usize::from(says.clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES))
}

/// The message as bytes; without its records and marked as truncated if it would be longer than `limit`.
pub(super) fn encode(reply: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    reply
        .truncate()
        .to_vec()
        .ok()
        .filter(|short| short.len() <= limit)
}

/// The transaction's number.
pub(super) fn id(bytes: &[u8]) -> Option<u16> {
    let (first, _rest) = bytes.split_first_chunk::<2>()?;
    Some(u16::from_be_bytes(*first))
}

/// Gives a message another number.
pub(super) fn set_id(bytes: &mut [u8], id: u16) {
    if let Some((first, _rest)) = bytes.split_first_chunk_mut::<2>() {
        *first = id.to_be_bytes();
    }
}

/// Whether `reply` is a response to exactly `query`: number, direction and question agree (RFC 5452 §9.1).
/// Resolvers may change the case of a name.
pub(super) fn is_reply(query: &[u8], reply: &[u8]) -> bool {
    let response = reply.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let asked = question(query);
    response
        && id(query) == id(reply)
        && asked.is_some()
        && question(reply)
            .zip(asked)
            .is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
}

/// The bytes of the first question. The first name of a message has nothing before it that it could point
/// to, so it is written out.
fn question(bytes: &[u8]) -> Option<&[u8]> {
    let count = bytes.get(4..6)?;
    if count != [0, 1] {
        return None;
    }
    let body = bytes.get(HEADER_BYTES..)?;
    let mut at = 0_usize;
    loop {
        let length = usize::from(*body.get(at)?);
        at = at.checked_add(1)?;
        match length {
            0 => break,
            1..=63 => at = at.checked_add(length)?,
            _ => return None,
        }
    }
    // Type and class.
    body.get(..at.checked_add(4)?)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use proptest::prelude::*;

    use super::{Received, datagram_limit, encode, failure, is_reply, question, receive, set_id};
    use crate::admin::fixture;
    use crate::dns::resolve;

    fn query(name: &str) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message
    }

    #[test]
    fn what_is_no_query_gets_no_answer_and_what_is_half_a_query_a_format_error() {
        assert_eq!(receive(b""), Received::Nothing);
        assert_eq!(receive(&[0; 11]), Received::Nothing);
        let response = failure(&query("a."), ResponseCode::NXDomain)
            .to_vec()
            .unwrap();
        assert_eq!(
            receive(&response),
            Received::Nothing,
            "answering answers makes loops"
        );
        let mut cut = query("a.example.").to_vec().unwrap();
        cut.truncate(15);
        let Received::Malformed(reply) = receive(&cut) else {
            panic!("cut")
        };
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(
            (reply.metadata.id, reply.metadata.response_code),
            (7, ResponseCode::FormErr)
        );
    }

    #[test]
    fn a_reply_belongs_to_its_query_only() {
        let asked = query("Host.Example.").to_vec().unwrap();
        let reply = |name: &str| {
            failure(&query(name), ResponseCode::NoError)
                .to_vec()
                .unwrap()
        };
        assert!(is_reply(&asked, &reply("host.example.")), "case may differ");
        assert!(!is_reply(&asked, &reply("other.example.")));
        assert!(!is_reply(&asked, &asked), "a query is no reply");
        let mut other = reply("host.example.");
        set_id(&mut other, 8);
        assert!(!is_reply(&asked, &other));
        assert!(!is_reply(&asked, b""));
        let mut none = reply("host.example.");
        none[5] = 0;
        assert!(
            !is_reply(&asked, &none),
            "a reply has to repeat the question"
        );
    }

    #[test]
    fn long_answers_are_cut_at_what_the_client_takes() {
        let mut asked = query("a.example.");
        assert_eq!(datagram_limit(&asked), 512);
        let mut reply = failure(&asked, ResponseCode::NoError);
        for host in 0..100 {
            let data = RData::A(A::new(10, 0, 0, host));
            reply.add_answer(Record::from_rdata(
                Name::from_ascii("a.example.").unwrap(),
                30,
                data,
            ));
        }
        let short = Message::from_vec(&encode(&reply, 512).unwrap()).unwrap();
        assert!(short.metadata.truncation && short.answers.is_empty());
        let whole = Message::from_vec(&encode(&reply, 4096).unwrap()).unwrap();
        assert!(!whole.metadata.truncation && whole.answers.len() == 100);
        for (says, limit) in [(100, 512), (1232, 1232), (u16::MAX, 4096)] {
            let mut edns = Edns::new();
            edns.set_max_payload(says);
            asked.set_edns(edns);
            assert_eq!(datagram_limit(&asked), limit, "{says}");
        }
    }

    /// Everything that looks at a client's or a resolver's bytes.
    fn digest(bytes: &[u8]) {
        let snapshot = fixture::bookinfo();
        let client = fixture::workload("bookinfo", "client", &[]);
        if let Received::Query(message) = receive(bytes) {
            let answer = resolve(&snapshot, &client, &message, &mut |_| {});
            drop(answer);
            let refusal = failure(&message, ResponseCode::ServFail);
            // A message that was read can be refused within any limit a client may set.
            assert!(
                encode(&refusal, datagram_limit(&message)).is_some() || message.queries.len() > 1
            );
        }
        let _belongs = is_reply(bytes, bytes);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            digest(&bytes);
        }

        #[test]
        fn damaged_queries_never_panic(
            name in "[a-z*.]{0,40}",
            kind in any::<u16>(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let name = Name::from_ascii(&name).unwrap_or_default();
            let mut message = Message::new(1, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(name, RecordType::from(kind)));
            message.set_edns(Edns::new());
            let mut bytes = message.to_vec().unwrap();
            prop_assert!(question(&bytes).is_some());
            digest(&bytes);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            digest(&bytes);
            bytes.truncate(cut.index(bytes.len() + 1));
            digest(&bytes);
        }
    }
}
