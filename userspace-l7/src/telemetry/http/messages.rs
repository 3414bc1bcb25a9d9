//! Counting gRPC messages in a stream of bytes.

/// Finds the beginnings of gRPC messages (gRPC over HTTP/2, "Length-Prefixed-Message": one byte of flags,
/// four of length, then the message). Keeps no bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageCount {
    /// Bytes of the prefix that were seen.
    prefix: u8,
    /// Length so far, while the prefix is read; then what is left of the message.
    length: u32,
}

/// Flags and length.
const PREFIX_BYTES: u8 = 5;

impl MessageCount {
    /// How many messages begin in `bytes`: a message is counted when its prefix is complete.
    pub fn feed(&mut self, mut bytes: &[u8]) -> u64 {
        let mut begun = 0;
        while !bytes.is_empty() {
            if self.prefix == PREFIX_BYTES {
                bytes = self.skip(bytes);
                continue;
            }
            let Some((byte, rest)) = bytes.split_first() else {
                break;
            };
            if self.prefix > 0 {
                self.length = self.length << 8 | u32::from(*byte);
            }
            bytes = rest;
            self.prefix += 1;
            if self.prefix == PREFIX_BYTES {
                begun += 1;
                self.end_if_whole();
            }
        }
        begun
    }

    fn skip<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let here = usize::try_from(self.length).map_or(bytes.len(), |left| left.min(bytes.len()));
        self.length = self
            .length
            .saturating_sub(u32::try_from(here).unwrap_or(u32::MAX));
        self.end_if_whole();
        bytes.get(here..).unwrap_or_default()
    }

    fn end_if_whole(&mut self) {
        if self.length == 0 {
            self.prefix = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::MessageCount;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.extend(vec![0xab; length]);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_message_is_counted_once_however_the_stream_is_cut(
            lengths in prop::collection::vec(0_usize..300, 0..20),
            cut in 1_usize..64,
        ) {
            let stream: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut count = MessageCount::default();
            let counted: u64 = stream.chunks(cut).map(|part| count.feed(part)).sum();
            prop_assert_eq!(counted, lengths.len() as u64);
        }
    }

    #[test]
    fn a_message_is_counted_when_its_prefix_is_there() {
        let mut count = MessageCount::default();
        assert_eq!(count.feed(&[0, 0, 0, 0]), 0);
        assert_eq!(count.feed(&[200]), 1, "200 bytes are still to come");
        assert_eq!(count.feed(&[0; 199]), 0);
        assert_eq!(count.feed(&[0; 6]), 1, "the last byte and an empty message");
    }
}
