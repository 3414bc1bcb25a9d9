//! `envoyExtAuthzHttp`: the request's own head is sent to the authorizer, and its status answers.

use ::http::header::{
    AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION,
    WWW_AUTHENTICATE,
};
use ::http::{Request, StatusCode, uri};

use super::check::PARTIAL_BODY;
use super::{Answer, Bytes, Changes, Checked, HeaderChange, How, Rejection, is_named};
use crate::envoy::is_of_the_hop;
use crate::model::HttpAuthorizer;

/// What an authorizer says to be taken from the request, as a list.
const REMOVE: &str = "x-envoy-auth-headers-to-remove";

/// The request that asks: method, path behind the prefix, host and `Authorization` of the one that it is about, what
/// is configured of its other headers, and as much of its body as is to be seen. `None` if the prefix makes a path of
/// it that is none.
pub fn question(settings: &HttpAuthorizer, checked: &Checked<'_>) -> Option<Request<Bytes>> {
    let mut headers = HeaderMap::new();
    for (name, value) in checked.head.headers {
        let is_wanted = *name == AUTHORIZATION || is_named(name, &settings.request_headers);
        if is_wanted && *name != HOST && *name != *PARTIAL_BODY && !is_of_the_hop(name) {
            let _more = headers.append(name, value.clone());
        }
    }
    let host = HeaderValue::from_str(checked.head.authority).ok()?;
    drop(headers.insert(HOST, host));
    let partial = HeaderName::from_static(PARTIAL_BODY);
    if let Some(body) = &checked.body
        && is_named(&partial, &settings.request_headers)
    {
        drop(headers.insert(partial, HeaderValue::from_static(body.partial())));
    }
    for (name, value) in &settings.additional_headers {
        drop(headers.insert(name, value.clone()));
    }
    let body = checked.body.as_ref().map(|body| body.bytes.clone());
    let body = body.unwrap_or_default();
    drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len())));
    let target = format!("{}{}", settings.path_prefix, checked.target());
    let mut request = Request::new(body);
    *request.method_mut() = checked.head.method.clone();
    *request.uri_mut() = uri::PathAndQuery::try_from(target).ok()?.into();
    *request.headers_mut() = headers;
    Some(request)
}

/// What a response means. 200 lets pass; 5xx is a failure of the authorizer's; every other status is the client's
/// answer (Envoy's `RawHttpClientImpl`), unless it is none that ends a request.
pub fn answer(
    settings: &HttpAuthorizer,
    status: StatusCode,
    headers: &HeaderMap,
    body: &Bytes,
) -> Answer {
    if status.is_server_error() || !super::answer::is_final(status) {
        return Answer::Failed;
    }
    if status == StatusCode::OK {
        return Answer::Allowed(changes(settings, headers));
    }
    let wanted = &settings.downstream_headers_on_deny;
    let is_for_client = |name: &HeaderName| {
        wanted.is_empty()
            || *name == WWW_AUTHENTICATE
            || *name == LOCATION
            || is_named(name, wanted)
    };
    let told = headers
        .iter()
        .filter(|(name, _)| *name != HOST && is_for_client(name));
    let told = told.map(|(name, value)| (name.clone(), value.clone()));
    Answer::Denied(Rejection::new(status, told, body.clone()))
}

fn changes(settings: &HttpAuthorizer, headers: &HeaderMap) -> Changes {
    let mut changes = Changes::default();
    for name in headers.keys().filter(|name| !is_of_the_hop(name)) {
        let values = || headers.get_all(name).iter().cloned().enumerate();
        if is_named(name, &settings.upstream_headers) {
            changes
                .request
                .extend(values().map(|(place, value)| HeaderChange {
                    name: name.clone(),
                    value,
                    // The first of several takes the place of what the client says.
                    how: if place == 0 {
                        How::Overwrite
                    } else {
                        How::Append
                    },
                }));
        }
        if is_named(name, &settings.downstream_headers_on_allow) {
            changes
                .response
                .extend(values().map(|(_, value)| HeaderChange {
                    name: name.clone(),
                    value,
                    how: How::Append,
                }));
        }
    }
    let lists = headers.get_all(REMOVE).iter();
    let names = lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','));
    changes.remove = names.filter_map(|name| name.trim().parse().ok()).collect();
    changes
}
