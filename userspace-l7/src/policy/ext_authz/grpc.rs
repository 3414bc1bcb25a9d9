//! `envoyExtAuthzGrpc`: `envoy.service.auth.v3.Authorization/Check`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ::http::header::HOST;
use ::http::{StatusCode, Version};

use super::answer::is_final;
use super::check::PARTIAL_BODY;
use super::{Answer, Bytes, Changes, Checked, CheckedPeer, HeaderChange, How, Rejection};
use crate::envoy::{
    self, Address, AppendAction, AttributeContext, CheckRequest, CheckResponse, CheckedHttp,
    CheckedRequest, DeniedHttpResponse, HeaderValueOption, HttpResponse, OkHttpResponse, Peer,
    SocketAddress,
};

/// The message that asks. `as_bytes`: the body goes as it is; else as text, in which what is no UTF-8 is U+FFFD.
pub fn question(checked: &Checked<'_>, as_bytes: bool) -> Vec<u8> {
    let (mut text, mut raw) = (String::new(), Vec::new());
    if let Some(body) = &checked.body {
        if as_bytes {
            raw = body.bytes.to_vec();
        } else {
            text = String::from_utf8_lossy(&body.bytes).into_owned();
        }
    }
    let head = &checked.head;
    let length = head.headers.get(::http::header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    envoy::encode(&CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(&checked.source)),
            destination: Some(peer(&checked.destination)),
            request: Some(CheckedRequest {
                http: Some(CheckedHttp {
                    id: header(checked, "x-request-id").unwrap_or_default(),
                    method: head.method.to_string(),
                    headers: headers(checked),
                    path: checked.target(),
                    host: head.authority.to_owned(),
                    scheme: head.scheme.to_owned(),
                    size: length.unwrap_or(-1),
                    protocol: match checked.version {
                        Version::HTTP_10 => "HTTP/1.0",
                        Version::HTTP_2 => "HTTP/2",
                        _ => "HTTP/1.1",
                    }
                    .to_owned(),
                    body: text,
                    raw_body: raw,
                }),
            }),
        }),
    })
}

fn peer(peer: &CheckedPeer<'_>) -> Peer {
    Peer {
        address: Some(Address {
            socket_address: Some(SocketAddress {
                address: peer.address.ip().to_canonical().to_string(),
                port_value: peer.address.port().into(),
            }),
        }),
        principal: peer.identity.map(ToString::to_string).unwrap_or_default(),
    }
}

fn header(checked: &Checked<'_>, name: &'static str) -> Option<String> {
    let name = ::http::HeaderName::from_static(name);
    checked.head.header(&name).map(Cow::into_owned)
}

/// All of them by name, with the pseudo-headers that Envoy has in every version of HTTP.
fn headers(checked: &Checked<'_>) -> BTreeMap<String, String> {
    let head = &checked.head;
    let names = head
        .headers
        .keys()
        .filter(|name| **name != HOST && **name != *PARTIAL_BODY);
    let mut all: BTreeMap<String, String> = names
        .filter_map(|name| Some((name.to_string(), head.header(name)?.into_owned())))
        .collect();
    all.insert(":authority".to_owned(), head.authority.to_owned());
    all.insert(":method".to_owned(), head.method.to_string());
    all.insert(":path".to_owned(), checked.target());
    all.insert(":scheme".to_owned(), head.scheme.to_owned());
    if let Some(body) = &checked.body {
        all.insert(PARTIAL_BODY.to_owned(), body.partial().to_owned());
    }
    all
}

/// What a message that answers means; the call itself has succeeded.
pub fn answer(message: &[u8]) -> Answer {
    let Some(CheckResponse {
        status,
        http_response,
    }) = envoy::decode(message)
    else {
        return Answer::Failed;
    };
    let code = status.unwrap_or_default().code;
    match http_response {
        Some(HttpResponse::Ok(ok)) if code == envoy::OK => Answer::Allowed(changes(&ok)),
        _ if code == envoy::OK => Answer::Allowed(Changes::default()),
        Some(HttpResponse::Denied(denied)) => rejection(&denied),
        _ => Answer::Denied(Rejection::new(
            StatusCode::FORBIDDEN,
            std::iter::empty(),
            Bytes::new(),
        )),
    }
}

fn rejection(denied: &DeniedHttpResponse) -> Answer {
    let status = match denied.status.as_ref().map(|status| status.code) {
        // "… other than 403 (Forbidden)".
        None | Some(0) => Some(StatusCode::FORBIDDEN),
        Some(code) => u16::try_from(code)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok())
            .filter(|status| is_final(*status)),
    };
    let Some(status) = status else {
        return Answer::Failed;
    };
    let headers = denied.headers.iter();
    let headers = headers.filter_map(|option| option.header.as_ref()?.header());
    let body = Bytes::from(denied.body.clone());
    Answer::Denied(Rejection::new(status, headers, body))
}

fn changes(ok: &OkHttpResponse) -> Changes {
    let list = |options: &[HeaderValueOption], append| -> Vec<HeaderChange> {
        let known = options.iter();
        known.filter_map(|option| change(option, append)).collect()
    };
    let names = ok.headers_to_remove.iter();
    Changes {
        // "the filter will append the correspondent header value to the matched request header".
        request: list(&ok.headers, How::AppendIfPresent),
        remove: names.filter_map(|name| name.parse().ok()).collect(),
        response: list(&ok.response_headers_to_add, How::Append),
        set_parameters: {
            let parameters = ok.query_parameters_to_set.iter();
            let parameters = parameters.map(|one| (one.key.clone(), one.value.clone()));
            parameters.collect()
        },
        remove_parameters: ok.query_parameters_to_remove.clone(),
    }
}

/// A change that says nothing of how overwrites: "By leaving `append` as false, the filter will either add a new
/// header, or override an existing one".
fn change(option: &HeaderValueOption, append: How) -> Option<HeaderChange> {
    let (name, value) = option.header.as_ref()?.header()?;
    let how = match (option.append, option.append_action()) {
        (Some(true), _) => append,
        (None, AppendAction::AddIfAbsent) => How::AddIfAbsent,
        (None, AppendAction::OverwriteIfExists) => How::OverwriteIfPresent,
        (
            Some(false) | None,
            AppendAction::AppendIfExistsOrAdd
            | AppendAction::OverwriteIfExistsOrAdd
            | AppendAction::AddIfAbsent
            | AppendAction::OverwriteIfExists,
        ) => How::Overwrite,
    };
    Some(HeaderChange { name, value, how })
}
