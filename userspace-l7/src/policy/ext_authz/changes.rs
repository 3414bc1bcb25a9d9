//! What an authorizer's answer changes of a request and of its response.

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
