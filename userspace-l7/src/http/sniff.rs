//! What a client speaks, by its first bytes. Pure, and bounded: what is not HTTP within [`LONGEST`] bytes is
//! carried as bytes.

use crate::model::AppProtocol;

/// Bytes that are looked at before a request line has to have ended: targets of more are no ordinary
/// requests (hyper itself refuses them).
pub(crate) const LONGEST: usize = 64 << 10;

/// How every HTTP/2 client begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that is believed: the longest registered one has 17 letters (IANA's registry).
const MAX_METHOD: usize = 24;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    /// HTTP/1.1 or 1.0.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

impl From<Version> for AppProtocol {
    fn from(version: Version) -> Self {
        match version {
            Version::Http1 => Self::Http1,
            Version::Http2 => Self::Http2,
        }
    }
}

impl Version {
    /// The version of a message that hyper has read.
    pub(crate) fn of(version: http::Version) -> Self {
        if version == http::Version::HTTP_2 {
            Self::Http2
        } else {
            Self::Http1
        }
    }
}

/// What the bytes so far tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// HTTP of this version.
    Http(Version),
    /// Something else.
    Opaque,
    /// More bytes are needed.
    Undecided,
    /// More bytes are needed, and they will hardly make it HTTP: no registered method begins like that.
    Unlikely,
}

/// Which version a connection to a port speaks that declares HTTP: HTTP/2 with its preface, else HTTP/1, however bad; `None` as
/// long as the preface has only begun.
pub(crate) fn declared(bytes: &[u8]) -> Option<Version> {
    if bytes.starts_with(PREFACE) {
        Some(Version::Http2)
    } else if PREFACE.starts_with(bytes) {
        None
    } else {
        Some(Version::Http1)
    }
}

/// Looks at a connection's first bytes: the preface of HTTP/2, or a request line that ends in `HTTP/1.x`.
pub(crate) fn sniff(bytes: &[u8]) -> Sniffed {
    let common = bytes.len().min(PREFACE.len());
    if bytes.get(..common) == PREFACE.get(..common) {
        return if common == PREFACE.len() {
            Sniffed::Http(Version::Http2)
        } else {
            Sniffed::Undecided
        };
    }
    let is_long = bytes.len() >= LONGEST;
    let bytes = without_empty_lines(bytes);
    if bytes.is_empty() && !is_long {
        return Sniffed::Undecided;
    }
    let line_end = bytes.iter().position(|byte| *byte == b'\n');
    let line = bytes
        .get(..line_end.unwrap_or(bytes.len()))
        .unwrap_or_default();
    let method = line.iter().position(|byte| *byte == b' ');
    let letters = line.get(..method.unwrap_or(line.len())).unwrap_or_default();
    if letters.len() > MAX_METHOD || !letters.iter().copied().all(is_token) {
        return Sniffed::Opaque;
    }
    match (method, line_end) {
        (_, None) if is_long => Sniffed::Opaque,
        // A target and what follows is visible text (RFC 9112 §3).
        (Some(place), None) if line.iter().skip(place).any(|byte| is_control(*byte)) => {
            Sniffed::Opaque
        }
        (_, None) if letters.iter().all(|byte| is_of_methods(*byte)) => Sniffed::Undecided,
        (_, None) => Sniffed::Unlikely,
        (Some(1..), Some(_)) if is_request_line(line) => Sniffed::Http(Version::Http1),
        (_, Some(_)) => Sniffed::Opaque,
    }
}

/// "A server … SHOULD ignore at least one empty line (CRLF) received prior to the request-line" (RFC 9112 §2.2); hyper
/// ignores any number. A CR that may begin one counts as well.
fn without_empty_lines(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes
        .strip_prefix(b"\r\n")
        .or_else(|| bytes.strip_prefix(b"\n"))
    {
        bytes = rest;
    }
    if bytes == b"\r" { &[] } else { bytes }
}

/// What registered methods consist of (IANA's registry): any token may be one, but few are.
fn is_of_methods(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-'
}

/// The end of a line is none.
fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\r'
}

/// Whether a line that begins with a method ends in a version of HTTP/1.
fn is_request_line(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (target, version) = line.split_at(line.len().saturating_sub(b" HTTP/1.1".len()));
    !target.is_empty() && matches!(version, b" HTTP/1.0" | b" HTTP/1.1")
}

/// A character of a token (RFC 9110 §5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::{Sniffed, Version, sniff};

    #[track_caller]
    fn check(bytes: &str, expected: Sniffed) {
        assert_eq!(sniff(bytes.as_bytes()), expected, "{bytes:?}");
    }

    #[test]
    fn http_is_known_by_its_first_line() {
        let (one, two) = (Version::Http1, Version::Http2);
        check("GET / HTTP/1.1\r\n", Sniffed::Http(one));
        check("POST /x HTTP/1.0\r\nHost: a", Sniffed::Http(one));
        check("\r\nGET / HTTP/1.1\r\n", Sniffed::Http(one));
        check("\n\r\nGET / HTTP/1.1\r\n", Sniffed::Http(one));
        check("VERSION-CONTROL http://a/ HTTP/1.1\n", Sniffed::Http(one));
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Sniffed::Http(two));
    }

    #[test]
    fn a_beginning_leaves_it_open() {
        for beginning in [
            "",
            "P",
            "PRI * HTTP/2.0\r\n",
            "GET",
            "GET /a/long",
            "GET / HTTP/1.1\r",
            "\r",
            "\r\n",
            "\r\nGET",
        ] {
            check(beginning, Sniffed::Undecided);
        }
    }

    #[test]
    fn a_beginning_that_no_method_has_leaves_it_hardly_open() {
        for beginning in ["hello", "h", "ping ", "x1 /", "!"] {
            check(beginning, Sniffed::Unlikely);
        }
        check("get / HTTP/1.1\n", Sniffed::Http(Version::Http1));
    }

    #[test]
    fn everything_else_is_bytes() {
        for other in [
            "\x16\x03\x01",
            "\0",
            "EHLO mail.example\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "GET /\r\n",
            "GET / HTTP/3\r\n",
            " GET / HTTP/1.1\r\n",
            "PING \x01",
            "GET /\0",
            "HTTP/1.1\n",
            "\r\r\nGET / HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "a-word-that-is-no-method-of-anybody",
        ] {
            check(other, Sniffed::Opaque);
        }
        check(&"\r\n".repeat(super::LONGEST), Sniffed::Opaque);
        check(
            &format!("GET /{}", "x".repeat(super::LONGEST)),
            Sniffed::Opaque,
        );
    }
}
