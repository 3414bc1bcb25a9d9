//! One gRPC call with one message each way, on the HTTP/2 connections that requests have (gRPC over HTTP/2).

use ::http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE};
use ::http::{Method, Request, StatusCode, Uri};
use bytes::{BufMut as _, Bytes, BytesMut};

use super::{Addressee, AskError, Asker};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The five bytes in front of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

impl Asker<'_> {
    /// Calls a method, and gets the message that answers. What is called declares nothing of its own: gRPC is HTTP/2.
    ///
    /// # Errors
    /// [`AskError`], also for every status but OK.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub(super) async fn call(
        &self,
        to: Addressee<'_>,
        method: &'static str,
        message: &[u8],
    ) -> Result<Bytes, AskError> {
        let mut request = Request::new(framed(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(method);
        let headers = request.headers_mut();
        drop(headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc")));
        drop(headers.insert(TE, HeaderValue::from_static("trailers")));
        let host = HeaderValue::from_str(&to.service.hostname);
        drop(headers.insert(HOST, host.map_err(|_bad| AskError::Unaskable)?));
        let heard = self.ask(to, request).await?;
        if heard.status != StatusCode::OK {
            return Err(AskError::HttpStatus(heard.status));
        }
        // In the headers where there is nothing else to say ("Trailers-Only").
        match status(&heard.trailers).or_else(|| status(&heard.headers)) {
            Some(0) => message_in(&heard.body).ok_or(AskError::Nonsense),
            Some(status) => Err(AskError::GrpcStatus(status)),
            None => Err(AskError::Nonsense),
        }
    }
}

fn status(headers: &HeaderMap) -> Option<i32> {
    headers.get(STATUS)?.to_str().ok()?.parse().ok()
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    // A question holds a request's head and a bounded part of its body.
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// The one message of an answer; `None` if there is none, or more, or it is compressed, which nobody asked for.
fn message_in(body: &Bytes) -> Option<Bytes> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>()?;
    let [compressed, length @ ..] = *prefix;
    let is_whole = usize::try_from(u32::from_be_bytes(length)).ok()? == message.len();
    (compressed == 0 && is_whole).then(|| body.slice(PREFIX..))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{framed, message_in};

    #[test]
    fn an_answer_is_one_message() {
        for (body, message) in [
            (&b"\0\0\0\0\x02hi"[..], Some(&b"hi"[..])),
            (b"\0\0\0\0\0", Some(b"")),
            // Compressed, cut off, two of them, none.
            (b"\x01\0\0\0\x02hi", None),
            (b"\0\0\0\0\x03hi", None),
            (b"\0\0\0\0\x01h\0\0\0\0\x01i", None),
            (b"\0\0\0\0", None),
            (b"", None),
        ] {
            let found = message_in(&Bytes::from_static(body));
            assert_eq!(found.as_deref(), message, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_framed_is_found_again(message: Vec<u8>) {
            let found = message_in(&framed(&message));
            prop_assert_eq!(found.as_deref(), Some(&*message));
        }

        #[test]
        fn any_bytes_are_an_answer_or_none(body: Vec<u8>) {
            let _found = message_in(&Bytes::from(body));
        }
    }
}
