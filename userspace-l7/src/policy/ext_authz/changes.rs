//! What an authorizer's answer changes of a request and of its response.

use std::borrow::Cow;

use ::http::header::{HOST, HeaderMap, HeaderName, HeaderValue};

use crate::envoy::is_of_the_hop;

/// What is made of a request that an authorizer lets pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changes of the request, before the rest of its judgement.
    pub request: Vec<HeaderChange>,
    /// Taken from the request after that.
    pub remove: Vec<HeaderName>,
    /// Changes of the response.
    pub response: Vec<HeaderChange>,
    /// Query parameters by name and value, each in place of all that have its name.
    pub set_parameters: Vec<(String, String)>,
    /// Query parameters that are taken away after that.
    pub remove_parameters: Vec<String>,
}

/// One change of a header list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderChange {
    /// Whose.
    pub name: HeaderName,
    /// The new value.
    pub value: HeaderValue,
    /// What becomes of values that are there.
    pub how: How,
}

/// What becomes of values that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// They go: nobody but the authorizer has a say in it.
    Overwrite,
    /// They go, and where there are none none comes.
    OverwriteIfPresent,
    /// They stay, and this one comes after them.
    Append,
    /// The same, and where there are none none comes.
    AppendIfPresent,
    /// They stay, and only where there are none this one comes.
    AddIfAbsent,
}

impl Changes {
    /// Changes a request's headers. Its framing and what is left of `Host` are not an authorizer's to take.
    pub fn apply_to_request(&self, headers: &mut HeaderMap) {
        apply(&self.request, headers);
        for name in self.remove.iter().filter(|name| **name != HOST) {
            if !is_of_the_hop(name) {
                drop(headers.remove(name));
            }
        }
    }
}

impl Changes {
    /// A query with its parameters changed, those that are not meant left as they are written; `None` if nothing is to
    /// be changed. Names are compared as they are meant, and written as a URI may have them (RFC 3986 §3.4).
    pub fn changed_query(&self, query: &str) -> Option<String> {
        if self.set_parameters.is_empty() && self.remove_parameters.is_empty() {
            return None;
        }
        let mut written: Vec<Cow<'_, str>> = Vec::new();
        written.extend(
            query
                .split('&')
                .filter(|one| !one.is_empty())
                .map(Cow::from),
        );
        for (name, value) in &self.set_parameters {
            let parameter = format!("{}={}", as_part(name), as_part(value));
            let place = written.iter().position(|one| is_called(one, name));
            let mut place_now = 0;
            written.retain(|one| {
                let is_first = place == Some(place_now);
                place_now += 1;
                is_first || !is_called(one, name)
            });
            match place.and_then(|place| written.get_mut(place)) {
                Some(first) => *first = parameter.into(),
                None => written.push(parameter.into()),
            }
        }
        for name in &self.remove_parameters {
            written.retain(|one| !is_called(one, name));
        }
        Some(written.join("&"))
    }
}

fn is_called(written: &str, name: &str) -> bool {
    let mut parsed = form_urlencoded::parse(written.as_bytes());
    parsed.next().is_some_and(|(found, _)| *found == *name)
}

/// A name or value as a part of a query.
fn as_part(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Makes changes, one after the other. None is of a header of the hop: those who make them see to that.
pub fn apply(changes: &[HeaderChange], headers: &mut HeaderMap) {
    for HeaderChange { name, value, how } in changes {
        let is_there = headers.contains_key(name);
        match how {
            How::Overwrite => drop(headers.insert(name, value.clone())),
            How::OverwriteIfPresent if is_there => drop(headers.insert(name, value.clone())),
            How::AddIfAbsent if !is_there => drop(headers.insert(name, value.clone())),
            How::AppendIfPresent if is_there => drop(headers.append(name, value.clone())),
            How::Append => drop(headers.append(name, value.clone())),
            How::OverwriteIfPresent | How::AddIfAbsent | How::AppendIfPresent => {}
        }
    }
}
