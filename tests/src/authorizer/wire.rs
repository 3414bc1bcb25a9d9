//! `envoy.service.auth.v3` as an authorizer sees it, by the field numbers of Envoy's API.

use std::collections::HashMap;

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(super) struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) attributes: Option<Attributes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Attributes {
    #[prost(message, optional, tag = "1")]
    pub(super) source: Option<Peer>,
    #[prost(message, optional, tag = "2")]
    pub(super) destination: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    pub(super) request: Option<Checked>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Peer {
    #[prost(string, tag = "4")]
    pub(super) principal: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Checked {
    #[prost(message, optional, tag = "2")]
    pub(super) http: Option<Http>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Http {
    #[prost(string, tag = "2")]
    pub(super) method: String,
    #[prost(map = "string, string", tag = "3")]
    pub(super) headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    pub(super) path: String,
    #[prost(string, tag = "5")]
    pub(super) host: String,
    #[prost(string, tag = "11")]
    pub(super) body: String,
    #[prost(bytes = "vec", tag = "12")]
    pub(super) raw_body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Code>,
    #[prost(oneof = "Answer", tags = "2, 3")]
    answer: Option<Answer>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Answer {
    #[prost(message, tag = "2")]
    Denied(Denied),
    #[prost(message, tag = "3")]
    Ok(Allowed),
}

/// `google.rpc.Status` and `envoy.type.v3.HttpStatus`, which look alike.
#[derive(Clone, PartialEq, Message)]
struct Code {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Denied {
    #[prost(message, optional, tag = "1")]
    status: Option<Code>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderOption>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, Message)]
struct Allowed {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderOption>,
    #[prost(string, repeated, tag = "5")]
    headers_to_remove: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    response_headers_to_add: Vec<HeaderOption>,
    #[prost(message, repeated, tag = "7")]
    query_parameters_to_set: Vec<Header>,
    #[prost(string, repeated, tag = "8")]
    query_parameters_to_remove: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderOption {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

/// A header, or a query parameter, which looks alike.
#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

fn options(list: &[(&str, &str)]) -> Vec<HeaderOption> {
    let option = |(key, value): &(&str, &str)| HeaderOption {
        header: Some(Header {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        }),
    };
    list.iter().map(option).collect()
}

impl CheckResponse {
    /// Lets pass, with headers for the application, taken from the request, and for the client.
    pub(super) fn allows(
        upstream: &[(&str, &str)],
        removed: &[&str],
        downstream: &[(&str, &str)],
    ) -> Self {
        Self {
            status: Some(Code { code: 0 }),
            answer: Some(Answer::Ok(Allowed {
                headers: options(upstream),
                headers_to_remove: removed.iter().map(ToString::to_string).collect(),
                response_headers_to_add: options(downstream),
                ..Allowed::default()
            })),
        }
    }

    /// Lets pass, with query parameters set and taken away.
    pub(super) fn changes_query(set: &[(&str, &str)], removed: &[&str]) -> Self {
        let parameter = |(key, value): &(&str, &str)| Header {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        Self {
            status: Some(Code { code: 0 }),
            answer: Some(Answer::Ok(Allowed {
                query_parameters_to_set: set.iter().map(parameter).collect(),
                query_parameters_to_remove: removed.iter().map(ToString::to_string).collect(),
                ..Allowed::default()
            })),
        }
    }

    /// Refuses with an HTTP status, of which 0 is the default.
    pub(super) fn denies(status: i32, headers: &[(&str, &str)], body: &str) -> Self {
        Self {
            // PERMISSION_DENIED.
            status: Some(Code { code: 7 }),
            answer: Some(Answer::Denied(Denied {
                status: Some(Code { code: status }),
                headers: options(headers),
                body: body.to_owned(),
            })),
        }
    }
}
