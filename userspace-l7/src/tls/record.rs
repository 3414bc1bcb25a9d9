//! The TLS 1.3 record layer after the handshake (RFC 8446 §5): seals and opens AES-GCM records inside the
//! caller's buffers.
//!
//! rustls makes the handshake, keeps the traffic secrets and derives the next ones; the bytes never pass
//! through its buffers, which cost three quarters of the cipher's speed. [`Sealer`] and [`Opener`] are the
//! two halves of one session and may live in two tasks of one thread: what one owes the other (the answer
//! to a `KeyUpdate`) waits in a cell that both share.
//!
//! ```text
//!  header (5)            | inner plaintext, sealed in place           | tag (16)
//!  23 | 0x0303 | length  | content ...................| type | zeros   |
//! ```

mod open;
mod seal;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::ops::RangeInclusive;
use std::rc::Rc;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets, ExtractedSecrets};

pub use open::{Opened, Opener};
pub use seal::{SealError, Sealer};

/// `TLSPlaintext.length` at most (RFC 8446 §5.1): what one record can carry.
pub const MAX_PLAINTEXT: usize = 1 << 14;

/// `TLSCiphertext` header: type, version, length.
pub(super) const HEADER: usize = 5;

/// "The length MUST NOT exceed 2^14 + 256 bytes" (RFC 8446 §5.2).
pub(super) const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;

/// GCM's tag.
const TAG: usize = 16;

/// `ContentType` (RFC 8446 §5.1) of what a protected record may carry.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// All of them, with `change_cipher_spec`, which the handshake may still carry.
pub(super) const CONTENT_TYPES: RangeInclusive<u8> = 20..=APPLICATION_DATA;

/// `HandshakeType` (RFC 8446 §4) of what may follow the handshake.
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// What is wrong with the bytes that the peer sent. Sticky: nothing can be read after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record was changed on its way, or sealed with another key.
    #[error("a record failed authentication")]
    Corrupt,
    /// A record is longer than the protocol allows.
    #[error("a record of {0} bytes is too long")]
    Overflow(usize),
    /// A record is too short to hold a content type and a tag, or holds padding only.
    #[error("a record holds no content")]
    Empty,
    /// A record of this type has no place after the handshake.
    #[error("a record of type {0} is not allowed after the handshake")]
    UnexpectedRecord(u8),
    /// A handshake message of this type has no place after the handshake.
    #[error("a handshake message of type {0} is not allowed after the handshake")]
    UnexpectedHandshake(u8),
    /// A message does not have the shape that its type demands.
    #[error("a message is malformed")]
    Malformed,
    /// The peer asks for new keys over and over without sending data.
    #[error("too many key updates without data")]
    KeyUpdateFlood,
    /// The peer gave up with this alert.
    #[error("the peer sent the alert {0:?}")]
    PeerAlert(AlertDescription),
    /// The connection ended without `close_notify`: the data may be incomplete.
    #[error("the connection ended without close_notify")]
    Truncated,
    /// The next receiving key could not be made.
    #[error("the next receiving key could not be derived")]
    Rekey,
}

impl RecordError {
    /// The alert that the error obliges us to send (RFC 8446 §5.2, §6.2), if the peer can still read one.
    pub(super) fn alert(self) -> Option<AlertDescription> {
        match self {
            Self::Corrupt => Some(AlertDescription::BadRecordMac),
            Self::Overflow(_) => Some(AlertDescription::RecordOverflow),
            Self::Empty
            | Self::UnexpectedRecord(_)
            | Self::UnexpectedHandshake(_)
            | Self::KeyUpdateFlood => Some(AlertDescription::UnexpectedMessage),
            Self::Malformed => Some(AlertDescription::DecodeError),
            Self::Rekey => Some(AlertDescription::InternalError),
            Self::PeerAlert(_) | Self::Truncated => None,
        }
    }
}

/// A traffic key could not be set up: a cipher suite that is not AES-GCM, or a secret that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("no AES-GCM traffic key can be made for the session")]
pub struct TrafficKeyError {
    #[source]
    source: Option<rustls::Error>,
}

impl From<rustls::Error> for TrafficKeyError {
    fn from(source: rustls::Error) -> Self {
        Self {
            source: Some(source),
        }
    }
}

/// The two halves of a session whose handshake is complete. `early` is what the peer sent right behind its
/// last handshake record.
///
/// # Errors
/// [`TrafficKeyError`] when the session's cipher is not AES-GCM.
pub(super) fn split(
    secrets: ExtractedSecrets,
    keys: TrafficKeys,
    early: Vec<u8>,
) -> Result<(Sealer, Opener), TrafficKeyError> {
    let ExtractedSecrets {
        tx: (sent, tx),
        rx: (received, rx),
    } = secrets;
    let shared = Rc::new(Shared {
        keys: RefCell::new(keys),
        reply_due: Cell::new(false),
    });
    let sealer = Sealer::new(RecordKey::new(&tx, sent)?, Rc::clone(&shared));
    let opener = Opener::new(RecordKey::new(&rx, received)?, shared, early);
    Ok((sealer, opener))
}

/// rustls' own keeper of the traffic secrets, for either role.
pub(super) enum TrafficKeys {
    /// We connected.
    Client(KernelConnection<ClientConnectionData>),
    /// We accepted.
    Server(KernelConnection<ServerConnectionData>),
}

impl TrafficKeys {
    fn next_sending(&mut self) -> Result<RecordKey, TrafficKeyError> {
        let (sequence, secrets) = match self {
            Self::Client(keys) => keys.update_tx_secret()?,
            Self::Server(keys) => keys.update_tx_secret()?,
        };
        RecordKey::new(&secrets, sequence)
    }

    fn next_receiving(&mut self) -> Result<RecordKey, TrafficKeyError> {
        let (sequence, secrets) = match self {
            Self::Client(keys) => keys.update_rx_secret()?,
            Self::Server(keys) => keys.update_rx_secret()?,
        };
        RecordKey::new(&secrets, sequence)
    }
}

/// What the two halves share.
struct Shared {
    keys: RefCell<TrafficKeys>,
    /// The peer asked for our `KeyUpdate`: "the receiver MUST send a `KeyUpdate` of its own … prior to sending
    /// its next Application Data record" (RFC 8446 §4.6.3).
    reply_due: Cell<bool>,
}

/// One direction's key with the number of records that it has protected.
struct RecordKey {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl RecordKey {
    fn new(secrets: &ConnectionTrafficSecrets, sequence: u64) -> Result<Self, TrafficKeyError> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            _ => return Err(TrafficKeyError { source: None }),
        };
        let no_key = |_| TrafficKeyError { source: None };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(no_key)?;
        let iv = iv
            .as_ref()
            .try_into()
            .map_err(|_length| TrafficKeyError { source: None })?;
        Ok(Self {
            aead: LessSafeKey::new(key),
            iv,
            sequence,
        })
    }

    /// The nonce of the next record: the sequence number, padded to the IV's length, XOR the IV (RFC 8446
    /// §5.3). Each nonce is handed out once.
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.sequence.to_be_bytes())
        {
            *byte ^= sequence;
        }
        // 2^64 records under one key cannot be reached: the sealer rekeys long before, and a peer that does
        // not would need centuries.
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The header of a protected record, which is also its additional data (RFC 8446 §5.2).
fn header(ciphertext: usize) -> [u8; HEADER] {
    debug_assert!(
        ciphertext <= MAX_CIPHERTEXT,
        "records are cut before they are sealed"
    );
    #[expect(clippy::cast_possible_truncation, reason = "at most 2^14 + 256")]
    let [high, low] = (ciphertext as u16).to_be_bytes();
    [APPLICATION_DATA, 3, 3, high, low]
}

/// The header as additional data.
fn additional_data(header: [u8; HEADER]) -> Aad<[u8; HEADER]> {
    Aad::from(header)
}
