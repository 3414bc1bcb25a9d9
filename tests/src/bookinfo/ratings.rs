//! ratings: how many stars each reviewer gives, as JSON.

use serde_json::json;

use super::{Answer, json as reply, not_found};
use crate::net::http::Request;

pub(super) fn answer(request: &Request) -> Answer {
    let Some(id) = request
        .path
        .strip_prefix("/ratings/")
        .and_then(|id| id.parse::<u32>().ok())
    else {
        return not_found(request);
    };
    reply(&json!({ "id": id, "ratings": { "Reviewer1": 5, "Reviewer2": 4 } }))
}
