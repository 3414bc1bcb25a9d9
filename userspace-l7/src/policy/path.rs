//! One spelling for each path, so that a policy and the application mean the same resource.
//!
//! What was judged has to be what is forwarded: [`NormalizedPath`] is made only here, policies match it, and
//! the request goes on with it (Envoy rewrites `:path` the same way). The rules are Istio's
//! `pathNormalization`, which are Envoy's, which are Chromium's canonical URL path.

use crate::model::PathNormalization;

/// A path in the one spelling that policies match and applications get. Begins with `/`, or is empty for
/// CONNECT; has no query and no fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NormalizedPath(String);

impl NormalizedPath {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of a CONNECT, which has none.
    pub(super) fn none() -> Self {
        Self(String::new())
    }

    /// Whether a server that decodes again, or cuts parameters, before it resolves `..` would see a dot
    /// segment where there is none yet: `/public/..%2fadmin`, `/public/%252e%252e/admin`,
    /// `/public/..;/admin`.
    ///
    /// Istio's default leaves such paths alone, so a policy cannot know what they will mean.
    pub fn hides_dot_segments(&self) -> bool {
        let mut seen = self.0.clone().into_bytes();
        for _ in 0..MOST_DECODINGS {
            let mut segments = seen.split(|byte| matches!(byte, b'/' | b'\\'));
            let is_dots = |segment: &[u8]| {
                let name = segment.split(|byte| *byte == b';').next();
                matches!(name, Some(b"." | b".."))
            };
            if segments.any(is_dots) {
                return true;
            }
            match decode_once(&seen) {
                Some(decoded) => seen = decoded,
                None => return false,
            }
        }
        // Whoever encodes that often hides something.
        true
    }
}

/// How often a chain of servers could decode one path.
const MOST_DECODINGS: usize = 4;

/// Why a path has no spelling: the request is answered with [`InvalidPath::status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// It does not begin with `/`: `OPTIONS *`, or no path at all.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A fragment: servers disagree on whether it belongs to the path (CVE-2021-32779).
    #[error("the path has a fragment")]
    Fragment,
    /// NUL, spelled out or escaped: many servers end the path there.
    #[error("the path has a NUL")]
    Nul,
    /// A control character or space, which would end the request line.
    #[error("the path has a control character")]
    Control,
}

impl InvalidPath {
    /// What the client is answered with (Envoy: 404 for a path that is not absolute, else 400).
    pub fn status(self) -> http::StatusCode {
        match self {
            Self::NotAbsolute => http::StatusCode::NOT_FOUND,
            Self::Fragment | Self::Nul | Self::Control => http::StatusCode::BAD_REQUEST,
        }
    }
}

/// Brings a path, without its query, to its one spelling. Doing it again changes nothing.
///
/// # Errors
/// [`InvalidPath`] for what Envoy refuses too.
pub fn normalize(path: &str, how: PathNormalization) -> Result<NormalizedPath, InvalidPath> {
    if !path.starts_with('/') {
        return Err(InvalidPath::NotAbsolute);
    }
    for byte in path.bytes() {
        match byte {
            b'#' => return Err(InvalidPath::Fragment),
            0 => return Err(InvalidPath::Nul),
            ..=b' ' | 0x7f => return Err(InvalidPath::Control),
            _ => {}
        }
    }
    let normalized = match how {
        PathNormalization::None => path.to_owned(),
        PathNormalization::Base => canonical(path)?,
        PathNormalization::MergeSlashes => merge_slashes(&canonical(path)?),
        PathNormalization::DecodeAndMergeSlashes => {
            merge_slashes(&canonical(&decode_slashes(path))?)
        }
    };
    Ok(NormalizedPath(normalized))
}

/// Resolves dot segments, turns `\` into `/`, decodes what need not be encoded and encodes what has to be.
/// A `..` at the root stays at the root (RFC 3986 §5.2.4).
fn canonical(path: &str) -> Result<String, InvalidPath> {
    let mut segments: Vec<String> = Vec::new();
    let mut raw = path.split(['/', '\\']).skip(1).peekable();
    while let Some(segment) = raw.next() {
        let segment = canonical_segment(segment)?;
        let is_last = raw.peek().is_none();
        match segment.as_str() {
            "." => {}
            ".." => {
                segments.pop();
            }
            _ => {
                segments.push(segment);
                continue;
            }
        }
        // A dot segment at the end leaves the slash that stood before it.
        if is_last {
            segments.push(String::new());
        }
    }
    Ok(format!("/{}", segments.join("/")))
}

/// One segment: unreserved characters decoded (RFC 3986 §2.3), other escapes as they came, hex case
/// included, and characters that may not stand in a path escaped.
fn canonical_segment(segment: &str) -> Result<String, InvalidPath> {
    let mut out: Vec<u8> = Vec::with_capacity(segment.len());
    // Where a `%` stands that begins no escape: decoding behind it must not make it begin one.
    let mut stray = None;
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (*first, escaped(tail)) {
            (b'%', Some(0)) => return Err(InvalidPath::Nul),
            (b'%', Some(byte)) => {
                if is_unreserved(byte) {
                    out.push(byte);
                } else {
                    out.push(b'%');
                    out.extend_from_slice(tail.get(..2).unwrap_or_default());
                }
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'%', None) => {
                stray = Some(out.len());
                out.push(b'%');
            }
            (byte, _) if must_be_escaped(byte) => {
                out.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
            (byte, _) => out.push(byte),
        }
        if let Some(at) = stray
            && out.len() == at + 3
        {
            if out.get(at + 1..).and_then(escaped).is_some() {
                out.splice(at..=at, *b"%25");
            }
            stray = None;
        }
    }
    // Everything that is not ASCII was escaped, so nothing is lost.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// The byte that two hex digits behind a `%` stand for.
fn escaped(behind: &[u8]) -> Option<u8> {
    let hex = |byte: &u8| char::from(*byte).to_digit(16);
    let [high, low, ..] = behind else {
        return None;
    };
    u8::try_from(hex(high)? * 16 + hex(low)?).ok()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn must_be_escaped(byte: u8) -> bool {
    !byte.is_ascii()
        || matches!(
            byte,
            b'"' | b'<' | b'>' | b'?' | b'^' | b'`' | b'{' | b'|' | b'}'
        )
}

/// Every escape spelled out; `None` if there is none.
fn decode_once(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        let byte = escaped(tail).filter(|_| *first == b'%');
        out.push(byte.unwrap_or(*first));
        rest = match byte {
            Some(_) => tail.get(2..).unwrap_or_default(),
            None => tail,
        };
    }
    (out.len() < path.len()).then_some(out)
}

/// `%2f` and `%5c` spelled out.
fn decode_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let (decoded, length) = match escape.get(1..3) {
            Some("2f" | "2F") => ('/', 3),
            Some("5c" | "5C") => ('\\', 3),
            _ => ('%', 1),
        };
        out.push(decoded);
        rest = escape.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests;
