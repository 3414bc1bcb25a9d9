//! What holds for every split and for every nonsense.

use proptest::prelude::*;

use super::*;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Everything that a machine did with its input.
#[derive(Debug, PartialEq)]
struct Outcome {
    result: Result<(), ConnectionError>,
    requests: Vec<u32>,
    data: Vec<(u32, Vec<u8>)>,
    sent: Vec<Sent>,
}

fn outcome(role: Role, pieces: &[&[u8]], now: Instant) -> Outcome {
    let mut machine = Machine::new(role);
    if role == Role::Client {
        let _ids = [machine.open(&request()), machine.open(&request())];
    }
    let mut greeting = Vec::new();
    machine.output(&mut greeting);
    let mut result = Ok(());
    for piece in pieces {
        result = machine.input(piece, now);
        if result.is_err() {
            break;
        }
    }
    let mut requests = Vec::new();
    while let Some(event) = machine.event() {
        if let Event::Request(id, _) = event {
            requests.push(id);
        }
    }
    let mut data = Vec::new();
    for id in [1, 3, 5, 7] {
        let mut all = Vec::new();
        while let Taken::Data(piece) = machine.take(id) {
            all.extend(piece);
        }
        data.push((id, all));
    }
    let mut out = Vec::new();
    machine.output(&mut out);
    Outcome {
        result,
        requests,
        data,
        sent: frames(&out),
    }
}

/// A frame that may or may not make sense.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        Just(connect()),
        Just(status(b"200")),
        Just(vec![0; 8]),
        Just(vec![0, 0, 0, 1]),
        Just(vec![2, b'a', b'b', b'c', 0, 0]),
        prop::collection::vec(any::<u8>(), 2000..40_000),
    ];
    let flags = prop_oneof![Just(0), Just(4), Just(5), Just(1), Just(12), any::<u8>()];
    (0_u8..11, flags, 0_u32..8, payload).prop_map(|(kind, flags, stream, payload)| {
        let mut bytes = Vec::new();
        frame::push(&mut bytes, kind, flags, stream, &payload);
        bytes
    })
}

/// Frames of tunnels that behave.
fn good_frames() -> impl Strategy<Value = Vec<u8>> {
    let step = (
        0_usize..3,
        prop::collection::vec(any::<u8>(), 0..5000),
        any::<bool>(),
    );
    prop::collection::vec(step, 1..30).prop_map(|steps| {
        let mut bytes = PREFACE.to_vec();
        frame::push_settings(&mut bytes, &[]);
        for id in [1, 3, 5] {
            let block = connect();
            frame::push_headers(&mut bytes, id, &block, false, 7);
        }
        for (stream, payload, padded) in steps {
            let id = [1, 3, 5][stream];
            if padded {
                let padded = [&[17][..], &payload, &[0; 17]].concat();
                frame::push(&mut bytes, kind::DATA, flag::PADDED, id, &padded);
            } else {
                frame::push(&mut bytes, kind::DATA, 0, id, &payload);
            }
        }
        bytes
    })
}

/// Cuts `bytes` at the given places.
fn cut<'b>(bytes: &'b [u8], places: &[prop::sample::Index]) -> Vec<&'b [u8]> {
    let mut places: Vec<_> = places
        .iter()
        .map(|place| place.index(bytes.len() + 1))
        .collect();
    places.sort_unstable();
    places.push(bytes.len());
    let mut from = 0;
    places
        .into_iter()
        .map(|to| &bytes[std::mem::replace(&mut from, to)..to])
        .collect()
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn splits_change_nothing(
        bytes in good_frames(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let now = Instant::now();
        let whole = outcome(Role::Server, &[&bytes], now);
        prop_assert_eq!(&whole.result, &Ok(()));
        prop_assert_eq!(&whole.requests, &[1, 3, 5]);
        prop_assert_eq!(outcome(Role::Server, &cut(&bytes, &places), now), whole);
    }

    #[test]
    fn nonsense_ends_the_same_way_however_it_is_split(
        list in prop::collection::vec(any_frame(), 0..12),
        is_server in any::<bool>(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let role = if is_server { Role::Server } else { Role::Client };
        let mut bytes = if is_server { PREFACE.to_vec() } else { Vec::new() };
        frame::push_settings(&mut bytes, &[]);
        bytes.extend(list.concat());
        let now = Instant::now();
        let whole = outcome(role, &[&bytes], now);
        prop_assert_eq!(outcome(role, &cut(&bytes, &places), now), whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let now = Instant::now();
        let _client = outcome(Role::Client, &[&bytes], now);
        let _server = outcome(Role::Server, &[PREFACE, &bytes], now);
    }
}
