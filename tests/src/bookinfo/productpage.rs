//! productpage: what people look at, put together from details and reviews.

use anyhow::Result;
use serde_json::Value;

use super::{Answer, ask, json as reply, not_found};
use crate::net::http::Request;

/// The one product of the shop.
const PRODUCT: u32 = 0;

pub(super) fn answer(request: &Request) -> Result<Answer> {
    let path = request.path.split('?').next().unwrap_or_default();
    Ok(match path {
        "/" | "/productpage" => page()?,
        "/health" => (200, "text/plain", b"Product page is healthy\n".to_vec()),
        "/api/v1/products/0" => reply(&ask("details", &format!("/details/{PRODUCT}"))?),
        "/api/v1/products/0/reviews" => reply(&ask("reviews", &format!("/reviews/{PRODUCT}"))?),
        _ => not_found(request),
    })
}

fn page() -> Result<Answer> {
    let details = ask("details", &format!("/details/{PRODUCT}"))?;
    let reviews = ask("reviews", &format!("/reviews/{PRODUCT}"))?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), escape);
    let facts: Vec<String> = ["author", "year", "type", "pages", "publisher", "language"]
        .iter()
        .map(|fact| format!("      <dt>{fact}</dt><dd>{}</dd>", text(&details[*fact])))
        .collect();
    let empty = Vec::new();
    let opinions: Vec<String> = reviews["reviews"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .map(|review| {
            let (quote, reviewer) = (text(&review["text"]), text(&review["reviewer"]));
            format!(
                "    <blockquote>{quote} <cite>{reviewer}</cite>{}</blockquote>",
                stars(&review["rating"])
            )
        })
        .collect();
    let (facts, opinions) = (facts.join("\n"), opinions.join("\n"));
    let title = text(&details["title"]);
    let html = format!(
        "<!DOCTYPE html>\n<html>\n  <head><title>Simple Bookstore App</title></head>\n  <body>\n    <h1>{title}</h1>\n    \
         <h2>Book Details</h2>\n    <dl>\n{facts}\n    </dl>\n    <h2>Book Reviews</h2>\n{opinions}\n    \
         <p>Reviews served by: {}</p>\n  </body>\n</html>\n",
        text(&reviews["podname"])
    );
    Ok((200, "text/html; charset=utf-8", html.into_bytes()))
}

/// Nothing for a review without a rating, as version 1 gives them.
fn stars(rating: &Value) -> String {
    let (Some(count), Some(color)) = (rating["stars"].as_u64(), rating["color"].as_str()) else {
        return String::new();
    };
    let full = usize::try_from(count.min(5)).unwrap_or(5);
    let line = "★".repeat(full) + &"☆".repeat(5 - full);
    format!(
        " <span class=\"stars\" style=\"color:{}\">{line}</span>",
        escape(color)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
