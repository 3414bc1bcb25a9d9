//! The decoder against the standard's examples, an encoder by others, and arbitrary bytes.

use proptest::prelude::*;

use super::*;

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, HpackError> {
    let mut fields = Vec::new();
    decoder
        .decode(block, |name, value| {
            fields.push((name.to_vec(), value.to_vec()));
        })
        .map(|()| fields)
}

#[track_caller]
fn check(decoder: &mut Decoder, block: &[u8], expected: &[(&str, &str)], size: usize) {
    let fields = decode(decoder, block).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    assert_eq!(fields, expected);
    assert_eq!(decoder.size, size);
}

/// RFC 7541 Appendix C.4: requests with Huffman coding on one connection.
#[test]
fn the_standards_requests_decode() {
    let mut decoder = Decoder::new();
    let first = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    let common = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
    let authority = (":authority", "www.example.com");
    check(
        &mut decoder,
        first,
        &[common[0], common[1], common[2], authority],
        57,
    );
    let second = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
    let cache = ("cache-control", "no-cache");
    check(
        &mut decoder,
        second,
        &[common[0], common[1], common[2], authority, cache],
        110,
    );
    let third = b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
    let expected = [
        common[0],
        (":scheme", "https"),
        (":path", "/index.html"),
        authority,
        ("custom-key", "custom-value"),
    ];
    check(&mut decoder, third, &expected, 164);
    // Emptied and used again.
    check(&mut decoder, b"\x20\x3f\xe1\x1f\x82", &common[..1], 0);
}

#[test]
fn broken_blocks_are_refused() {
    let mut huge = vec![0x40, 1, b'a'];
    put_string(&mut huge, &[b'x'; 5000]);
    let mut decoder = Decoder::new();
    assert!(decode(&mut decoder, &huge).is_ok());
    assert_eq!(decoder.size, 0, "larger than the table, so not kept");
    for (block, error) in [
        (&b"\x80"[..], HpackError::Index),
        (b"\xbe", HpackError::Index),
        (b"\xff\xff\xff\xff\xff\x00", HpackError::Integer),
        (b"\xff\xff", HpackError::Truncated),
        (b"\x00\x05ab", HpackError::Truncated),
        (b"\x00\x01a", HpackError::Truncated),
        (b"\x00\x81\x00\x00", HpackError::Huffman),
        (b"\x3f\xe2\x1f", HpackError::TableSize),
        (b"\x82\x20", HpackError::TableSize),
    ] {
        assert_eq!(decode(&mut Decoder::new(), block), Err(error), "{block:?}");
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(512))]

    /// Two decoders agree on every block of one connection.
    #[test]
    fn blocks_by_another_encoder_decode_as_by_another_decoder(
        blocks in prop::collection::vec(
            prop::collection::vec(("[a-c]{1,3}", prop::collection::vec(any::<u8>(), 0..200)), 0..20),
            1..6,
        ),
    ) {
        let mut encoder = loona_hpack::Encoder::new();
        let mut ours = Decoder::new();
        for fields in &blocks {
            let block = encoder.encode(fields.iter().map(|(name, value)| (name.as_bytes(), &value[..])));
            let expected: Fields =
                fields.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone())).collect();
            prop_assert_eq!(decode(&mut ours, &block).unwrap(), expected);
            prop_assert!(ours.size <= TABLE_SIZE);
        }
    }

    #[test]
    fn what_we_encode_decodes(name in "[a-z:-]{1,40}", value in prop::collection::vec(any::<u8>(), 0..40_000)) {
        let mut block = Vec::new();
        put_field(&mut block, &name, &value);
        put_field(&mut block, ":status", &value);
        let expected = vec![(name.into_bytes(), value.clone()), (b":status".to_vec(), value)];
        prop_assert_eq!(decode(&mut Decoder::new(), &block).unwrap(), expected);
    }

    #[test]
    fn huffman_coding_agrees_with_another_decoder(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut out = Vec::new();
        let ours = huffman::decode(&bytes, &mut out).map(|()| out);
        let theirs = loona_hpack::huffman::HuffmanDecoder::new().decode(&bytes).ok();
        prop_assert_eq!(ours, theirs);
    }

    #[test]
    fn arbitrary_bytes_never_panic(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..4)) {
        let mut decoder = Decoder::new();
        for block in &blocks {
            let _outcome = decode(&mut decoder, block);
            prop_assert!(decoder.size <= TABLE_SIZE);
        }
    }
}
