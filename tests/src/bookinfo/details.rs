//! details: facts about a book, as JSON.

use serde_json::json;

use super::{Answer, json as reply, not_found};
use crate::net::http::Request;

pub(super) fn answer(request: &Request) -> Answer {
    let Some(id) = request
        .path
        .strip_prefix("/details/")
        .and_then(|id| id.parse::<u32>().ok())
    else {
        return not_found(request);
    };
    reply(&json!({
        "id": id,
        "title": "The Comedy of Errors",
        "author": "William Shakespeare",
        "year": 1594,
        "type": "paperback",
        "pages": 200,
        "publisher": "Quarto House",
        "language": "English",
    }))
}
