//! What becomes of an HTTP request: which rule takes it, which backend, and what is changed on the way.
//! Pure: heads and rules go in, decisions come out; randomness and time are passed in.

mod backend;
pub mod cors;
pub mod fault;
mod filters;
mod headers;
mod matching;
mod original;
mod redirect;
pub mod retry;
mod rewrite;
pub mod session;

pub use backend::choose_backend;
pub use filters::{Filters, shadow};
pub use headers::modify;
pub use matching::select;
pub use original::Original;
pub use redirect::redirect;
pub use rewrite::{InvalidTarget, rewrite};

pub use crate::model::RequestHead;

#[cfg(test)]
mod tests;
