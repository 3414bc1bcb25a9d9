//! The static Huffman code of RFC 7541 Appendix B. It is canonical (codes of one length are consecutive, in
//! the order of their symbols), so the lengths alone define it.

/// End of string: never sent, its first bits pad the last byte (RFC 7541 §5.2).
const EOS: usize = 256;

/// Bits per symbol, the 257th being [`EOS`].
const LENGTHS: [u8; EOS + 1] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const LONGEST: usize = 30;

/// Codes of one length: the first of them left-aligned, and where their symbols begin in [`SYMBOLS`].
#[derive(Clone, Copy)]
struct Group {
    /// First left-aligned code that is too large for this group.
    limit: u64,
    first: u64,
    offset: usize,
}

/// Symbols in the order of their codes.
const SYMBOLS: [u16; EOS + 1] = tables().0;
/// Indexed by length.
const GROUPS: [Group; LONGEST + 1] = tables().1;

const fn tables() -> ([u16; EOS + 1], [Group; LONGEST + 1]) {
    let mut symbols = [0; EOS + 1];
    let mut groups = [Group {
        limit: 0,
        first: 0,
        offset: 0,
    }; LONGEST + 1];
    let (mut code, mut placed, mut length) = (0_u64, 0, 1);
    while length <= LONGEST {
        let shift = 32 - length;
        groups[length].first = code << shift;
        groups[length].offset = placed;
        let mut symbol = 0_u16;
        while (symbol as usize) <= EOS {
            if LENGTHS[symbol as usize] as usize == length {
                symbols[placed] = symbol;
                placed += 1;
                code += 1;
            }
            symbol += 1;
        }
        groups[length].limit = code << shift;
        code <<= 1;
        length += 1;
    }
    (symbols, groups)
}

/// Symbol and length for every first byte that holds a whole code; length 0 for the others.
const SHORT: [(u8, u8); 256] = short();

const fn short() -> [(u8, u8); 256] {
    let mut table = [(0, 0); 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let (symbol, length) = search((byte as u32) << 24, 8);
        if length > 0 && symbol < EOS {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "symbols below 256, lengths up to 8"
            )]
            let entry = (symbol as u8, length as u8);
            table[byte] = entry;
        }
        byte += 1;
    }
    table
}

/// The symbol whose code `bits` begin with, and its length; 0 if it is longer than `longest`.
const fn search(bits: u32, longest: usize) -> (usize, usize) {
    let bits = bits as u64;
    let mut length = 5;
    while length <= longest {
        let group = &GROUPS[length];
        if bits < group.limit {
            #[expect(clippy::cast_possible_truncation, reason = "below 257")]
            let place = group.offset + ((bits - group.first) >> (32 - length)) as usize;
            return (SYMBOLS[place] as usize, length);
        }
        length += 1;
    }
    (EOS, 0)
}

/// Appends what `input` stands for. `None`: it ends in the middle of a code, is padded wrongly, or holds the
/// end-of-string symbol.
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut input = input.iter();
    let (mut bits, mut have) = (0_u64, 0_usize);
    loop {
        while have < 32 {
            let Some(byte) = input.next() else { break };
            bits = bits << 8 | u64::from(*byte);
            have += 8;
        }
        if have == 0 {
            return Some(());
        }
        // The next 32 bits; past the end, ones, as the padding has.
        let next = if have >= 32 {
            bits >> (have - 32)
        } else {
            bits << (32 - have) | u64::from(u32::MAX >> have)
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "what lies above the 32 bits is taken already"
        )]
        let next = next as u32;
        let (symbol, length) = match SHORT[(next >> 24) as usize] {
            (_, 0) => search(next, LONGEST),
            (symbol, length) => (usize::from(symbol), usize::from(length)),
        };
        if length > have || symbol == EOS {
            // "A padding strictly longer than 7 bits MUST be treated as a decoding error", as one that is not
            // of ones (RFC 7541 §5.2).
            let is_padding = have < 8 && next == u32::MAX;
            return is_padding.then_some(());
        }
        out.push(u8::try_from(symbol).ok()?);
        have -= length;
        bits &= (1 << have) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541 Appendix C.4 and C.6.
    #[test]
    fn the_examples_of_the_standard_decode() {
        for (hex, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("6402", "302"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
        ] {
            let bytes = from_hex(hex);
            let mut out = Vec::new();
            assert_eq!(decode(&bytes, &mut out), Some(()), "{text}");
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    fn from_hex(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn every_symbol_has_its_code() {
        for (symbol, length) in LENGTHS[..EOS].iter().enumerate() {
            let length = usize::from(*length);
            let group = GROUPS[length];
            let place = SYMBOLS
                .iter()
                .position(|other| usize::from(*other) == symbol)
                .unwrap();
            let code = group.first + (((place - group.offset) as u64) << (32 - length));
            // The code, then ones.
            let padded = u32::try_from(code | ((1_u64 << (32 - length)) - 1)).unwrap();
            let bytes = &padded.to_be_bytes()[..length.div_ceil(8)];
            let mut out = Vec::new();
            assert_eq!(decode(bytes, &mut out), Some(()), "{symbol}");
            assert_eq!(out.first().map(|byte| usize::from(*byte)), Some(symbol));
        }
    }

    #[test]
    fn wrong_padding_and_the_end_of_string_are_refused() {
        // '0' is five zero bits.
        for bytes in [
            &[0x00][..],
            &[0x06],
            &[0x07, 0xff],
            &[0xff],
            &[0xff; 4],
            &[0xff; 5],
        ] {
            assert_eq!(decode(bytes, &mut Vec::new()), None, "{bytes:?}");
        }
        assert_eq!(decode(&[0x07], &mut Vec::new()), Some(()));
        assert_eq!(decode(&[], &mut Vec::new()), Some(()));
    }
}
