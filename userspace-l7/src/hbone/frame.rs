//! HTTP/2 frames as bytes (RFC 9113 §4, §6): heads, and the few frames that tunnels send.

/// The client's first bytes (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Size of every frame's head.
pub(super) const HEAD_LEN: usize = 9;

/// The largest payload that a peer may send before it has seen our SETTINGS, and that we may send before we
/// have seen its own (RFC 9113 §4.2).
pub(super) const DEFAULT_MAX_FRAME: usize = 16_384;

/// Frame types (RFC 9113 §6). Others are ignored (§4.1).
pub(super) mod kind {
    pub(in crate::hbone) const DATA: u8 = 0;
    pub(in crate::hbone) const HEADERS: u8 = 1;
    pub(in crate::hbone) const PRIORITY: u8 = 2;
    pub(in crate::hbone) const RST_STREAM: u8 = 3;
    pub(in crate::hbone) const SETTINGS: u8 = 4;
    pub(in crate::hbone) const PUSH_PROMISE: u8 = 5;
    pub(in crate::hbone) const PING: u8 = 6;
    pub(in crate::hbone) const GOAWAY: u8 = 7;
    pub(in crate::hbone) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::hbone) const CONTINUATION: u8 = 9;
}

/// Flags.
pub(super) mod flag {
    pub(in crate::hbone) const ACK: u8 = 0x1;
    pub(in crate::hbone) const END_STREAM: u8 = 0x1;
    pub(in crate::hbone) const END_HEADERS: u8 = 0x4;
    pub(in crate::hbone) const PADDED: u8 = 0x8;
    pub(in crate::hbone) const PRIORITY: u8 = 0x20;
}

/// Settings (RFC 9113 §6.5.2).
pub(super) mod setting {
    pub(in crate::hbone) const ENABLE_PUSH: u16 = 2;
    pub(in crate::hbone) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in crate::hbone) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in crate::hbone) const MAX_FRAME_SIZE: u16 = 5;
    pub(in crate::hbone) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    /// Reads a head; the reserved bit is ignored (RFC 9113 §4.1).
    pub(super) fn decode(bytes: [u8; HEAD_LEN]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        }
    }

    /// Writes the head. Lengths are bounded by the callers, below 2^24.
    pub(super) fn encode(self) -> [u8; HEAD_LEN] {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "payloads are far below 2^24"
        )]
        let [_, l0, l1, l2] = (self.length as u32).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a whole frame.
pub(super) fn push(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(
        &Head {
            length: payload.len(),
            kind,
            flags,
            stream,
        }
        .encode(),
    );
    out.extend_from_slice(payload);
}

/// Appends SETTINGS.
pub(super) fn push_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let payload: Vec<u8> = settings
        .iter()
        .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()))
        .collect();
    push(out, kind::SETTINGS, 0, 0, &payload);
}

/// Appends `WINDOW_UPDATE`.
pub(super) fn push_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    push(
        out,
        kind::WINDOW_UPDATE,
        0,
        stream,
        &increment.to_be_bytes(),
    );
}

/// Appends `RST_STREAM`.
pub(super) fn push_reset(out: &mut Vec<u8>, stream: u32, code: u32) {
    push(out, kind::RST_STREAM, 0, stream, &code.to_be_bytes());
}

/// Appends GOAWAY without debug data.
pub(super) fn push_goaway(out: &mut Vec<u8>, last_stream: u32, code: u32) {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&last_stream.to_be_bytes());
    payload[4..].copy_from_slice(&code.to_be_bytes());
    push(out, kind::GOAWAY, 0, 0, &payload);
}

/// Appends a header block in as many frames as the peer's limit asks for (RFC 9113 §6.10).
pub(super) fn push_headers(
    out: &mut Vec<u8>,
    stream: u32,
    block: &[u8],
    end_stream: bool,
    max_frame: usize,
) {
    let mut parts = block.chunks(max_frame.max(1)).peekable();
    let mut kind = kind::HEADERS;
    let mut flags = if end_stream { flag::END_STREAM } else { 0 };
    if parts.peek().is_none() {
        push(out, kind, flags | flag::END_HEADERS, stream, &[]);
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            flags |= flag::END_HEADERS;
        }
        push(out, kind, flags, stream, part);
        (kind, flags) = (kind::CONTINUATION, 0);
    }
}
