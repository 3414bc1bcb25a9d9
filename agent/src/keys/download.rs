//! One key set from its server, found by OpenID discovery where only the issuer is known.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ACCEPT, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use serde::Deserialize;
use userspace_l7::model::JwksSource;
use userspace_l7::policy::jwt::{InvalidKeySet, KeySet};

use crate::fetch::{Ask, Client, FetchError, Place, To, Version};

/// OpenID Connect Discovery 1.0 §4.
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Sets in use have a few keys of some hundred bytes each.
const MOST_BYTES: usize = 1 << 20;

/// Why there is no key set.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// There is no answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// An issuer whose name is no URL says nothing of where its keys are.
    #[error("the issuer `{0}` is no URL, so its keys cannot be discovered: write jwksUri or jwks")]
    NotDiscoverable(String),
    /// The server answers with another status than 200.
    #[error("{url} answers {status}")]
    Status {
        /// Who.
        url: Uri,
        /// What.
        status: StatusCode,
    },
    /// The discovery document does not say where the keys are.
    #[error("{0} names no jwks_uri")]
    NoKeysNamed(Uri),
    /// The answer is no key set.
    #[error("the answer of {url} is of no use")]
    NoSet {
        /// Who.
        url: Uri,
        /// What is wrong with it.
        source: InvalidKeySet,
    },
}

#[derive(Deserialize)]
struct Discovered {
    jwks_uri: String,
}

/// Who would be asked first; `None`: nobody.
pub(super) fn asks(client: &Client, source: &JwksSource) -> Option<Vec<Place>> {
    let url = first(source).ok()?;
    client.places(To::Url(&url)).ok()
}

/// Fetches a set; each of the requests may take `timeout`.
pub(super) async fn download(
    client: &Client,
    source: &JwksSource,
    timeout: Duration,
) -> Result<KeySet, DownloadError> {
    let mut url = first(source)?;
    if let JwksSource::Discovery(_) = source {
        let document = get(client, &url, timeout).await?;
        let discovered = serde_json::from_slice::<Discovered>(&document).ok();
        let named = discovered.and_then(|found| found.jwks_uri.parse().ok());
        url = named.ok_or(DownloadError::NoKeysNamed(url))?;
    }
    let text = get(client, &url, timeout).await?;
    // What is no text is no JSON either, and is told so.
    let keys = KeySet::parse(&String::from_utf8_lossy(&text));
    keys.map_err(|source| DownloadError::NoSet { url, source })
}

/// The URL that is asked first.
fn first(source: &JwksSource) -> Result<Uri, DownloadError> {
    match source {
        JwksSource::Uri(url) => url
            .parse()
            .map_err(|_invalid| FetchError::Url(url.to_string()).into()),
        JwksSource::Discovery(issuer) => {
            let unknown = || DownloadError::NotDiscoverable(issuer.to_string());
            let is_url = issuer.starts_with("http://") || issuer.starts_with("https://");
            let url = format!("{}{WELL_KNOWN}", issuer.trim_end_matches('/'));
            let url = url.parse().ok().filter(|_| is_url);
            url.ok_or_else(unknown)
        }
    }
}

async fn get(client: &Client, url: &Uri, timeout: Duration) -> Result<Bytes, DownloadError> {
    let accepted = HeaderValue::from_static("application/json, application/jwk-set+json");
    let ask = Ask {
        version: Version::Http1,
        method: Method::GET,
        url: url.clone(),
        headers: HeaderMap::from_iter([(ACCEPT, accepted)]),
        body: Bytes::new(),
        most_bytes: MOST_BYTES,
    };
    let answer = client.send(To::Url(url), ask, timeout).await?;
    if answer.status == StatusCode::OK {
        Ok(answer.body)
    } else {
        Err(DownloadError::Status {
            url: url.clone(),
            status: answer.status,
        })
    }
}
