//! Where HTTP/1 requests begin and end, read more strictly than hyper does: what two readers could take for
//! different requests must not pass (RFC 9112 §11.2, request smuggling). Pure: bytes go in piece by piece.
//!
//! ```text
//!   Start ──line──► Fields ──empty line──► Body(n) ──► Start
//!     ▲                     └─chunked─► Size ─► Data(n) ─► DataEnd ─► Size … 0 ─► Trailers ──► Start
//! ```

/// Longest line that is kept across pieces. hyper refuses heads of less.
const MAX_LINE: usize = 64 << 10;

/// Most digits of a length: more than any body has.
const MAX_DIGITS: usize = 15;

/// Why bytes are no request that everybody reads alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// A line that does not end in CRLF, or has a CR elsewhere.
    #[error("bare CR or LF")]
    BareLineEnd,
    /// Not `method SP target SP HTTP/1.x`.
    #[error("bad request line")]
    RequestLine,
    /// No colon, or no token in front of it: a space there has been read in two ways.
    #[error("bad field name")]
    FieldName,
    /// A line that continues another (obs-fold).
    #[error("folded field")]
    Folded,
    /// A control character.
    #[error("bad field value")]
    FieldValue,
    /// Not one number.
    #[error("bad Content-Length")]
    ContentLength,
    /// More than one, be they equal or not.
    #[error("several Content-Lengths")]
    ContentLengths,
    /// Anything but one `chunked`.
    #[error("bad Transfer-Encoding")]
    TransferEncoding,
    /// Two lengths for one body.
    #[error("Content-Length beside Transfer-Encoding")]
    TwoLengths,
    /// Not a hexadecimal number, or data that does not end where it says.
    #[error("bad chunk")]
    Chunk,
    /// A line without an end.
    #[error("line too long")]
    TooLong,
}

/// Reads one connection's requests as far as their framing goes.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    state: State,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    head: Head,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Between requests.
    #[default]
    Start,
    /// In a head, behind its first line.
    Fields,
    /// In a body, so many bytes before its end.
    Body(u64),
    /// Before a chunk's size.
    Size,
    /// In a chunk.
    Data(u64),
    /// Before the CRLF behind a chunk.
    DataEnd,
    /// Behind the last chunk.
    Trailers,
}

/// What a head says of its body.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    is_http10: bool,
    length: Option<u64>,
    is_chunked: bool,
}

impl Framing {
    /// Reads on. The number of bytes that are in order: all of them, or those before the line with the
    /// violation.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> (usize, Option<Violation>) {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if let Some(taken) = self.skip(rest) {
                at += taken;
                continue;
            }
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                if self.line.len() + rest.len() > MAX_LINE {
                    return (at, Some(Violation::TooLong));
                }
                self.line.extend_from_slice(rest);
                break;
            };
            let (line, _after) = rest.split_at(end + 1);
            let read = if self.line.is_empty() {
                self.end_line(line)
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                let read = self.end_line(&whole);
                whole.clear();
                self.line = whole;
                read
            };
            if let Err(violation) = read {
                return (at, Some(violation));
            }
            at += line.len();
        }
        (bytes.len(), None)
    }

    /// Whether a request has begun whose head is not complete.
    pub(crate) fn is_in_head(&self) -> bool {
        match self.state {
            State::Start => !self.line.is_empty(),
            State::Fields => true,
            _ => false,
        }
    }

    /// Bytes that are data, whatever they are.
    fn skip(&mut self, bytes: &[u8]) -> Option<usize> {
        let (left, after) = match &mut self.state {
            State::Body(left) => (left, State::Start),
            State::Data(left) => (left, State::DataEnd),
            _ => return None,
        };
        let taken = bytes
            .len()
            .min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= taken as u64;
        if *left == 0 {
            self.state = after;
        }
        Some(taken)
    }

    fn end_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let line = line.strip_suffix(b"\r\n").ok_or(Violation::BareLineEnd)?;
        if line.contains(&b'\r') {
            return Err(Violation::BareLineEnd);
        }
        self.state = match self.state {
            // The end of trailers; and "a server … SHOULD ignore at least one empty line … prior to the
            // request-line" (RFC 9112 §2.2).
            State::Start | State::Trailers if line.is_empty() => State::Start,
            State::Start => {
                self.head = request_line(line)?;
                State::Fields
            }
            State::Fields if line.is_empty() => self.head.body(),
            State::Fields => {
                self.head.field(line)?;
                State::Fields
            }
            State::Size => match chunk_size(line)? {
                0 => State::Trailers,
                size => State::Data(size),
            },
            State::DataEnd if line.is_empty() => State::Size,
            State::DataEnd => return Err(Violation::Chunk),
            State::Trailers => {
                let _checked = field(line)?;
                State::Trailers
            }
            // Data has no lines.
            data @ (State::Body(_) | State::Data(_)) => data,
        };
        Ok(())
    }
}

impl Head {
    fn field(&mut self, line: &[u8]) -> Result<(), Violation> {
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Violation::ContentLengths);
            }
            self.length = Some(number(value, 10).ok_or(Violation::ContentLength)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_plain = value.eq_ignore_ascii_case(b"chunked");
            if self.is_chunked || self.is_http10 || !is_plain {
                return Err(Violation::TransferEncoding);
            }
            self.is_chunked = true;
        }
        if self.is_chunked && self.length.is_some() {
            return Err(Violation::TwoLengths);
        }
        Ok(())
    }

    fn body(&self) -> State {
        match self.length {
            _ if self.is_chunked => State::Size,
            Some(0) | None => State::Start,
            Some(length) => State::Body(length),
        }
    }
}

fn request_line(line: &[u8]) -> Result<Head, Violation> {
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next(), words.next());
    let (version, more) = (words.next(), words.next());
    let is_method = method.is_some_and(is_token);
    let is_target = target.is_some_and(|target| {
        !target.is_empty() && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f)
    });
    let is_http10 = match version {
        Some(b"HTTP/1.1") => false,
        Some(b"HTTP/1.0") => true,
        _ => return Err(Violation::RequestLine),
    };
    if !is_method || !is_target || more.is_some() {
        return Err(Violation::RequestLine);
    }
    Ok(Head {
        is_http10,
        ..Head::default()
    })
}

/// A field's name and trimmed value.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if line
        .first()
        .is_some_and(|first| matches!(first, b' ' | b'\t'))
    {
        return Err(Violation::Folded);
    }
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, rest) = line.split_at(colon.ok_or(Violation::FieldName)?);
    if !is_token(name) {
        return Err(Violation::FieldName);
    }
    let value = rest.get(1..).unwrap_or_default().trim_ascii();
    let is_control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    if value.iter().any(is_control) {
        return Err(Violation::FieldValue);
    }
    Ok((name, value))
}

/// A chunk's size; its extensions mean nothing to anybody (RFC 9112 §7.1.1).
fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (size, rest) = line.split_at(digits);
    let is_end = rest.is_empty() || rest.first() == Some(&b';');
    number(size, 16).filter(|_| is_end).ok_or(Violation::Chunk)
}

/// Digits and nothing else.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    let is_digit = |byte: &u8| char::from(*byte).is_digit(radix);
    let sound = (1..=MAX_DIGITS).contains(&text.len()) && text.iter().all(is_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| sound)?;
    u64::from_str_radix(text, radix).ok()
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().copied().all(super::sniff::is_token)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Framing, Violation};

    /// Reads in one piece and byte by byte, which has to come to the same.
    #[track_caller]
    fn check(text: &str, expected: Option<Violation>) {
        let mut whole = Framing::default();
        let (read, violation) = whole.read(text.as_bytes());
        assert_eq!(violation, expected, "{text:?}");
        let mut pieces = Framing::default();
        let mut found = None;
        for byte in text.as_bytes() {
            let (_, violation) = pieces.read(&[*byte]);
            found = found.or(violation);
        }
        assert_eq!(found, expected, "{text:?}, byte by byte");
        if expected.is_none() {
            assert_eq!(read, text.len(), "{text:?}");
        }
    }

    const HEAD: &str = "POST / HTTP/1.1\r\nhost: a\r\n";

    #[test]
    fn ordinary_requests_pass_one_behind_the_other() {
        check(
            "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.0\r\n\r\n",
            None,
        );
        check(
            &format!("\r\n{HEAD}content-length: 2\r\n\r\nhi{HEAD}\r\n"),
            None,
        );
        let chunks = "3;x=\"y\"\r\n\r\nx\r\n0A\r\n0123456789\r\n0\r\ntrailer: 1\r\n\r\n";
        check(
            &format!("{HEAD}Transfer-Encoding: Chunked\r\n\r\n{chunks}{HEAD}\r\n"),
            None,
        );
        check(&format!("{HEAD}empty:\r\nspaced: \t a b \t\r\n\r\n"), None);
    }

    #[test]
    fn two_lengths_for_one_body_are_refused() {
        let both = [
            "content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
        ];
        for fields in both {
            check(&format!("{HEAD}{fields}"), Some(Violation::TwoLengths));
        }
        let twice = "content-length: 1\r\ncontent-length: 1\r\n\r\n";
        check(&format!("{HEAD}{twice}"), Some(Violation::ContentLengths));
        for value in [
            "1, 1",
            "+1",
            "-1",
            "0x1",
            "1 1",
            "",
            "1e1",
            "9999999999999999",
        ] {
            let head = format!("{HEAD}content-length: {value}\r\n\r\n");
            check(&head, Some(Violation::ContentLength));
        }
    }

    #[test]
    fn only_chunked_is_a_transfer_encoding() {
        for value in [
            "gzip, chunked",
            "chunked, identity",
            "xchunked",
            "identity",
            "",
        ] {
            let head = format!("{HEAD}transfer-encoding: {value}\r\n\r\n");
            check(&head, Some(Violation::TransferEncoding));
        }
        let old = "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n";
        check(old, Some(Violation::TransferEncoding));
        let twice = "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n";
        check(&format!("{HEAD}{twice}"), Some(Violation::TransferEncoding));
    }

    #[test]
    fn lines_end_in_crlf_and_nowhere_else() {
        for text in [
            "GET / HTTP/1.1\nhost: a\n\n",
            "GET / HTTP/1.1\r\nhost: a\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\rx: b\r\n\r\n",
            "\nGET / HTTP/1.1\r\n\r\n",
        ] {
            check(text, Some(Violation::BareLineEnd));
        }
    }

    #[test]
    fn a_request_line_has_three_words() {
        for line in [
            "GET /",
            "GET  / HTTP/1.1",
            "GET / x HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET / HTTP/2.0",
            "GET / http/1.1",
            "G\u{7f}T / HTTP/1.1",
            "GET /\u{1} HTTP/1.1",
            " GET / HTTP/1.1",
        ] {
            check(&format!("{line}\r\n\r\n"), Some(Violation::RequestLine));
        }
    }

    #[test]
    fn fields_are_not_folded_and_names_are_tokens() {
        check(
            &format!("{HEAD}a: b\r\n c\r\n\r\n"),
            Some(Violation::Folded),
        );
        for field in ["content-length : 1", "no colon", ": x", "a b: c", "(x): y"] {
            check(
                &format!("{HEAD}{field}\r\n\r\n"),
                Some(Violation::FieldName),
            );
        }
        check(
            &format!("{HEAD}a: b\0c\r\n\r\n"),
            Some(Violation::FieldValue),
        );
    }

    #[test]
    fn chunks_are_as_long_as_they_say() {
        let head = format!("{HEAD}transfer-encoding: chunked\r\n\r\n");
        for chunk in [
            "x\r\n",
            "-1\r\n",
            "0x1\r\n",
            "\r\n",
            "1 \r\nx\r\n",
            "1\r\nxy\r\n",
        ] {
            check(&format!("{head}{chunk}"), Some(Violation::Chunk));
        }
        check(&format!("{head}1\nx\r\n"), Some(Violation::BareLineEnd));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut framing = Framing::default();
        let (_, first) = framing.read(&vec![b'a'; super::MAX_LINE]);
        assert_eq!(first, None);
        assert_eq!(framing.read(b"a").1, Some(Violation::TooLong));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_read_alike_in_whatever_pieces_they_come(
            bytes in prop::collection::vec(prop_oneof![
                Just(b"POST / HTTP/1.1\r\n".to_vec()),
                Just(b"transfer-encoding: chunked\r\n".to_vec()),
                Just(b"content-length: 3\r\n".to_vec()),
                Just(b"\r\n".to_vec()),
                Just(b"2\r\nab\r\n0\r\n".to_vec()),
                prop::collection::vec(any::<u8>(), 0..4),
            ], 0..12),
            size in 1_usize..9,
        ) {
            let bytes = bytes.concat();
            let (_, whole) = Framing::default().read(&bytes);
            let mut framing = Framing::default();
            let pieces = bytes.chunks(size).find_map(|piece| framing.read(piece).1);
            prop_assert_eq!(whole, pieces);
        }
    }
}
