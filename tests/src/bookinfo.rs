//! Bookinfo, the story that Istio's documentation tells with: four small HTTP services of our own.
//!
//! ```text
//!   productpage --> details
//!        \------> reviews v1           (no stars)
//!                 reviews v2 --> ratings (black stars)
//!                 reviews v3 --> ratings (red stars)
//! ```
//!
//! Services call each other by name, `http://details:9080/details/0` and so on, through whatever resolver the
//! pod has.

pub mod cluster;
mod details;
pub mod load;
mod productpage;
mod ratings;
mod reviews;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{TcpListener, ToSocketAddrs as _};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};

use crate::net::http::{self, Ask, Conversation, Request, Response};
use crate::net::{connect, patient};

/// The port of every Bookinfo service.
pub const PORT: u16 = 9080;

/// What a service answers: status, content type, body.
type Answer = (u16, &'static str, Vec<u8>);

/// Which service a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The page that people look at.
    Productpage,
    /// Facts about a book.
    Details,
    /// What people say about a book, in one of three versions.
    Reviews(Stars),
    /// How many stars people give a book.
    Ratings,
}

/// How a version of reviews shows ratings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stars {
    /// v1 never asks for them.
    None,
    /// v2.
    Black,
    /// v3.
    Red,
}

impl FromStr for Role {
    type Err = anyhow::Error;

    /// Reads the name of a deployment: `reviews-v2`.
    fn from_str(deployment: &str) -> Result<Self> {
        Ok(match deployment {
            "productpage-v1" => Self::Productpage,
            "details-v1" => Self::Details,
            "reviews-v1" => Self::Reviews(Stars::None),
            "reviews-v2" => Self::Reviews(Stars::Black),
            "reviews-v3" => Self::Reviews(Stars::Red),
            "ratings-v1" => Self::Ratings,
            _ => bail!("Bookinfo has no deployment `{deployment}`"),
        })
    }
}

impl fmt::Display for Stars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Black => "black",
            Self::Red => "red",
        })
    }
}

/// Serves until the process ends.
///
/// # Errors
/// If the port cannot be opened or the listener breaks.
pub fn serve(role: Role) -> Result<()> {
    let listener =
        TcpListener::bind(("::", PORT)).with_context(|| format!("cannot listen on {PORT}"))?;
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept")?;
        patient(&stream)?;
        // A client that goes away in the middle is its own affair.
        std::thread::spawn(move || drop(http::serve(&stream, |request| answer(role, request))));
    }
    Ok(())
}

fn answer(role: Role, request: &Request) -> Answer {
    if request.method != "GET" {
        return (405, "text/plain", b"only GET".to_vec());
    }
    let result = match role {
        Role::Productpage => productpage::answer(request),
        Role::Details => Ok(details::answer(request)),
        Role::Reviews(stars) => reviews::answer(request, stars),
        Role::Ratings => Ok(ratings::answer(request)),
    };
    result.unwrap_or_else(|error| (502, "text/plain", format!("{error:#}\n").into_bytes()))
}

/// Fetches `http://host[:port]/path`, the name resolved as any program would.
///
/// # Errors
/// If the name has no address, nothing answers there, or the URL is none.
pub fn fetch(url: &str) -> Result<Response> {
    request("GET", url)
}

/// The same with another method and an empty body.
///
/// # Errors
/// As [`fetch`].
pub fn request(method: &str, url: &str) -> Result<Response> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("`{url}` is no http:// URL"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let with_port = if authority.contains(':') {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let addresses = with_port
        .to_socket_addrs()
        .with_context(|| format!("`{authority}` has no address"))?;
    let ask = Ask::new(method, &format!("/{path}")).host(authority);
    let ask = ask.with("Connection", "close");
    let mut failure = anyhow::anyhow!("`{authority}` has no address");
    for address in addresses {
        match connect(address) {
            Ok(stream) => return Conversation::over(stream).ask(&ask),
            Err(error) => {
                failure = anyhow::Error::new(error).context(format!("cannot connect to {address}"));
            }
        }
    }
    Err(failure)
}

/// Fetches JSON from another service of ours.
fn ask(service: &str, path: &str) -> Result<serde_json::Value> {
    let response = fetch(&format!("http://{service}:{PORT}{path}"))?;
    ensure!(
        response.status == 200,
        "{service} answers {}: {}",
        response.status,
        response.text().trim()
    );
    serde_json::from_slice(&response.body)
        .with_context(|| format!("{service} does not answer JSON"))
}

fn json(value: &serde_json::Value) -> Answer {
    (200, "application/json", value.to_string().into_bytes())
}

fn not_found(request: &Request) -> Answer {
    (
        404,
        "text/plain",
        format!("there is no {}\n", request.path).into_bytes(),
    )
}

/// The pods of the story: deployment → service account.
pub fn deployments() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("productpage-v1", "bookinfo-productpage"),
        ("details-v1", "bookinfo-details"),
        ("reviews-v1", "bookinfo-reviews"),
        ("reviews-v2", "bookinfo-reviews"),
        ("reviews-v3", "bookinfo-reviews"),
        ("ratings-v1", "bookinfo-ratings"),
    ])
}
