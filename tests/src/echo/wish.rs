//! Answers out of the ordinary that a request may ask an echo workload for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// The header that asks; its value is a list of `name` or `name=value`, parted by commas.
pub(crate) const HEADER: &str = "x-echo";

/// What a request asks for. What it does not name is as usual; what nobody knows is ignored.
///
/// | part | meaning |
/// |---|---|
/// | `status=503` | the status |
/// | `delay=250` | milliseconds before the answer |
/// | `bytes=100000` | a body of so many bytes in place of what was seen |
/// | `stream` | the request's body is sent back as it comes |
/// | `trailer` | a trailer `x-trailer` |
/// | `reset` | the connection is cut before the answer |
/// | `reset=body` | the connection is cut amid the body |
/// | `fail=2:KEY` | the first two requests with this key get what is asked for, or 503; later ones are as usual |
/// | `grpc=14` | gRPC's status |
/// | `set=name:value` | a response header |
#[derive(Clone, Debug)]
pub struct Wish {
    pub(super) status: StatusCode,
    pub(super) delay: Duration,
    pub(super) bytes: Option<usize>,
    pub(super) stream: bool,
    pub(super) trailer: bool,
    pub(super) cut: Option<Cut>,
    pub(super) grpc_status: u16,
    pub(super) headers: HeaderMap,
}

/// Where a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    BeforeTheAnswer,
    AmidTheBody,
}

/// How often each key of `fail` has been asked for.
#[derive(Default)]
pub(super) struct Tries(Mutex<HashMap<String, u32>>);

impl Tries {
    fn count(&self, key: &str) -> u32 {
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = tries.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }
}

impl Wish {
    pub(super) fn of(headers: &HeaderMap, tries: &Tries) -> Self {
        let mut wish = Self {
            status: StatusCode::OK,
            delay: Duration::ZERO,
            bytes: None,
            stream: false,
            trailer: false,
            cut: None,
            grpc_status: 0,
            headers: HeaderMap::new(),
        };
        let (mut status, mut is_failing, mut has_recovered) = (None, false, false);
        let values = headers.get_all(HEADER).iter();
        let parts = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','));
        for part in parts.map(str::trim) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "status" => status = value.parse().ok(),
                "delay" => wish.delay = Duration::from_millis(value.parse().unwrap_or_default()),
                "bytes" => wish.bytes = value.parse().ok(),
                "stream" => wish.stream = true,
                "trailer" => wish.trailer = true,
                "reset" if value == "body" => wish.cut = Some(Cut::AmidTheBody),
                "reset" => wish.cut = Some(Cut::BeforeTheAnswer),
                "grpc" => wish.grpc_status = value.parse().unwrap_or_default(),
                "fail" => {
                    let (times, key) = value.split_once(':').unwrap_or((value, ""));
                    is_failing = true;
                    has_recovered = tries.count(key) > times.parse().unwrap_or_default();
                }
                "set" => wish.headers.extend(header(value)),
                _ => {}
            }
        }
        if has_recovered {
            (wish.cut, wish.grpc_status) = (None, 0);
            return wish;
        }
        let is_plain_failure = is_failing && wish.cut.is_none() && wish.grpc_status == 0;
        let failure = is_plain_failure.then_some(StatusCode::SERVICE_UNAVAILABLE);
        wish.status = status.or(failure).unwrap_or(StatusCode::OK);
        wish
    }
}

fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    Some((name.parse().ok()?, value.parse().ok()?))
}
