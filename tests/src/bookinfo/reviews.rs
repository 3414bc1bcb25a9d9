//! reviews: what people say; versions 2 and 3 ask ratings for the stars.

use std::env;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Answer, Stars, ask, json as reply, not_found};
use crate::net::http::Request;

const TEXTS: [(&str, &str); 2] = [
    (
        "Reviewer1",
        "Two pairs of twins and one small town: I have not laughed as much in years.",
    ),
    (
        "Reviewer2",
        "Shorter than his others, and not a scene too long.",
    ),
];

pub(super) fn answer(request: &Request, stars: Stars) -> Result<Answer> {
    let Some(id) = request
        .path
        .strip_prefix("/reviews/")
        .and_then(|id| id.parse::<u32>().ok())
    else {
        return Ok(not_found(request));
    };
    let ratings = match stars {
        Stars::None => Value::Null,
        Stars::Black | Stars::Red => ask("ratings", &format!("/ratings/{id}"))?["ratings"].clone(),
    };
    let reviews: Vec<Value> = TEXTS
        .iter()
        .map(|(reviewer, text)| {
            let mut review = json!({ "reviewer": reviewer, "text": text });
            if let Some(count) = ratings[reviewer].as_u64() {
                review["rating"] = json!({ "stars": count, "color": stars.to_string() });
            }
            review
        })
        .collect();
    Ok(reply(
        &json!({ "id": id, "podname": env::var("HOSTNAME").unwrap_or_default(), "reviews": reviews }),
    ))
}
