//! All prefixes of a text, found by one binary search.

use super::bucket::Bucket;
use super::{Lists, Places};
use crate::model::RequestHead;

/// Prefixes in order, each with the longest other one that is a prefix of it.
///
/// Whatever stands in order between a prefix and a text that begins with it begins with it as well. So the
/// last prefix that is not behind the text leads, from parent to parent, to all prefixes of the text.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefixes {
    sorted: Vec<Prefix>,
}

#[derive(Clone, Debug)]
struct Prefix {
    text: Box<str>,
    parent: Option<usize>,
    bucket: Bucket,
}

impl Prefixes {
    /// Of prefixes with one place each, which may stand there several times.
    pub(super) fn new(mut filed: Vec<(Box<str>, u32)>, bucket: impl Fn(Places) -> Bucket) -> Self {
        filed.sort_unstable();
        let mut sorted: Vec<Prefix> = Vec::with_capacity(filed.len());
        let mut filed = filed.into_iter().peekable();
        while let Some((text, place)) = filed.next() {
            let mut places = Places::from_slice(&[place]);
            while let Some((_, another)) = filed.next_if(|(other, _)| *other == text) {
                places.push(another);
            }
            let mut parent = sorted.len().checked_sub(1);
            while let Some(other) = parent.and_then(|at| sorted.get(at)) {
                if text.starts_with(&*other.text) {
                    break;
                }
                parent = other.parent;
            }
            sorted.push(Prefix {
                text,
                parent,
                bucket: bucket(places),
            });
        }
        Self { sorted }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Names the entries of every prefix of `text`.
    pub(super) fn collect<'t>(&'t self, text: &str, head: &RequestHead<'_>, lists: &mut Lists<'t>) {
        let behind = self.sorted.partition_point(|prefix| &*prefix.text <= text);
        let mut next = behind.checked_sub(1);
        while let Some(prefix) = next.and_then(|at| self.sorted.get(at)) {
            if text.starts_with(&*prefix.text) {
                prefix.bucket.collect(head, lists);
            }
            next = prefix.parent;
        }
    }
}
