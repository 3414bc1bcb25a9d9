//! Header compression (RFC 7541): a decoder for whatever peers send, and an encoder without state.

mod huffman;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::VecDeque;

/// The dynamic table that a peer may use: the default, which needs no SETTINGS to hold from the first block.
pub(super) const TABLE_SIZE: usize = 4096;

/// What each entry costs beyond its bytes (RFC 7541 §4.1, RFC 9113 §6.5.2).
pub(super) const ENTRY_OVERHEAD: usize = 32;

/// A block that cannot be decoded. The connection's table is lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HpackError {
    #[error("the block ends in the middle of a field")]
    Truncated,
    #[error("an integer is too large")]
    Integer,
    #[error("a string is not Huffman coded as it says")]
    Huffman,
    #[error("an index points outside of the tables")]
    Index,
    #[error("a table size that we do not allow, or in the wrong place")]
    TableSize,
}

/// A field's name and value.
type Field<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// Decodes the header blocks of one connection.
pub(super) struct Decoder {
    /// Newest first.
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    size: usize,
    limit: usize,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            limit: TABLE_SIZE,
        }
    }

    /// What the table's entries count for.
    #[cfg(fuzzing)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Hands each field of a whole block to `each`.
    ///
    /// # Errors
    /// [`HpackError`]: the connection has to end, for what follows cannot be decoded either.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let mut rest = block;
        let mut first = true;
        while let [kind, ..] = rest {
            match kind {
                0x80.. => {
                    let (name, value) = self.entry(integer(&mut rest, 7)?)?;
                    each(name, value);
                }
                0x40.. => {
                    let (name, value) = self.literal(&mut rest, 6)?;
                    each(&name, &value);
                    let (name, value) = (name.into_owned(), value.into_owned());
                    self.insert(name, value);
                }
                0x20.. => {
                    let limit = integer(&mut rest, 5)?;
                    // "This … MUST occur at the beginning of the first header block" (RFC 7541 §4.2).
                    if limit > TABLE_SIZE || !first {
                        return Err(HpackError::TableSize);
                    }
                    self.limit = limit;
                    self.evict(0);
                    continue;
                }
                // Without indexing, or never indexed, which concerns only those who forward headers.
                _ => {
                    let (name, value) = self.literal(&mut rest, 4)?;
                    each(&name, &value);
                }
            }
            first = false;
        }
        Ok(())
    }

    fn literal<'t, 'b: 't>(
        &'t self,
        rest: &mut &'b [u8],
        prefix: u32,
    ) -> Result<Field<'t>, HpackError> {
        let name = match integer(rest, prefix)? {
            0 => string(rest)?,
            index => Cow::Borrowed(self.entry(index)?.0),
        };
        Ok((name, string(rest)?))
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        let place = index.checked_sub(1).ok_or(HpackError::Index)?;
        if let Some(entry) = STATIC.get(place) {
            return Ok(*entry);
        }
        let (name, value) = self
            .table
            .get(place - STATIC.len())
            .ok_or(HpackError::Index)?;
        Ok((name, value))
    }

    fn insert(&mut self, name: Vec<u8>, value: Vec<u8>) {
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        self.evict(size);
        // "An attempt to add an entry larger than the maximum size causes the table to be emptied … it is not
        // an error" (RFC 7541 §4.4).
        if size <= self.limit {
            self.size += size;
            self.table.push_front((name, value));
        }
    }

    /// Makes room for `coming` bytes.
    fn evict(&mut self, coming: usize) {
        while self.size + coming > self.limit {
            let Some((name, value)) = self.table.pop_back() else {
                break;
            };
            self.size -= name.len() + value.len() + ENTRY_OVERHEAD;
        }
    }
}

/// An integer with a prefix of so many bits (RFC 7541 §5.1); the prefix's byte is there.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, HpackError> {
    let mut next = || -> Result<u8, HpackError> {
        let (byte, after) = rest.split_first().ok_or(HpackError::Truncated)?;
        *rest = after;
        Ok(*byte)
    };
    let mask = (1_u8 << prefix) - 1;
    let first = next()? & mask;
    let mut value = usize::from(first);
    if first < mask {
        return Ok(value);
    }
    // Four more bytes reach 2^28, far above every length that we accept.
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(HpackError::Integer)
}

/// A string (RFC 7541 §5.2).
fn string<'a>(rest: &mut &'a [u8]) -> Result<Cow<'a, [u8]>, HpackError> {
    let is_coded = rest.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (text, after) = rest.split_at_checked(length).ok_or(HpackError::Truncated)?;
    *rest = after;
    if !is_coded {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(length * 3 / 2);
    huffman::decode(text, &mut decoded).ok_or(HpackError::Huffman)?;
    Ok(Cow::Owned(decoded))
}

/// Appends a field as a literal without indexing (RFC 7541 §6.2.2), so that no table can get out of step; names
/// that every tunnel sends take their index in the static table.
pub(super) fn put_field(block: &mut Vec<u8>, name: &str, value: &[u8]) {
    match (name, value) {
        (":status", b"200") => return block.push(0x80 | 8),
        (":status", _) => block.push(8),
        (":authority", _) => block.push(1),
        (":method", _) => block.push(2),
        _ => {
            block.push(0);
            put_string(block, name.as_bytes());
        }
    }
    put_string(block, value);
}

/// A string as it is: our values are short, and the network between agents is not.
fn put_string(block: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text.len();
    if rest < 0x7f {
        block.push(low_bits(rest));
    } else {
        block.push(0x7f);
        rest -= 0x7f;
        while rest >= 0x80 {
            block.push(low_bits(rest) | 0x80);
            rest >>= 7;
        }
        block.push(low_bits(rest));
    }
    block.extend_from_slice(text);
}

/// The low seven bits.
fn low_bits(value: usize) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    let bits = (value & 0x7f) as u8;
    bits
}

/// RFC 7541 Appendix A; the first entry has index 1.
const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];
