//! The sending half: plaintext is appended to the outgoing buffer and sealed where it lies.

use std::fmt;
use std::rc::Rc;

use rustls::AlertDescription;

use super::{
    ALERT, APPLICATION_DATA, HANDSHAKE, HEADER, KEY_UPDATE, MAX_PLAINTEXT, RecordError, RecordKey,
    Shared, TAG, TrafficKeyError, additional_data, header,
};

/// Records after which the key is replaced. RFC 8446 §5.5 allows 2^24.5 full-size records per GCM key.
const REKEY_AFTER: u64 = 1 << 23;

/// Room that a new buffer begins with: the frames of a small request.
const SMALL_BATCH: usize = 512;

/// `AlertLevel` (RFC 8446 §6): kept on the wire, without meaning in TLS 1.3.
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Seals what is sent.
///
/// Small pieces share a record: [`append`](Self::append) leaves the last record of the buffer open, and
/// [`finish`](Self::finish) seals it. Until then the buffer belongs to the sealer: nobody else may change it,
/// and bytes of an open record must not be sent.
pub struct Sealer {
    key: RecordKey,
    shared: Rc<Shared>,
    open: Option<OpenRecord>,
    closed: bool,
    rekey_after: u64,
}

/// Where the open record lies in the outgoing buffer, header included.
#[derive(Clone, Copy)]
struct OpenRecord {
    start: usize,
    end: usize,
}

/// Why nothing more can be sealed. None of them is the peer's doing.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// An alert has ended our direction.
    #[error("our direction is closed already")]
    Closed,
    /// The buffer with the open record was changed by someone else.
    #[error("the outgoing buffer changed while it held an open record")]
    BufferChanged,
    /// The cipher refused.
    #[error("a record could not be sealed")]
    Seal,
    /// The next sending key could not be made.
    #[error("the next sending key could not be derived")]
    Rekey(#[source] TrafficKeyError),
}

impl Sealer {
    pub(super) fn new(key: RecordKey, shared: Rc<Shared>) -> Self {
        Self {
            key,
            shared,
            open: None,
            closed: false,
            rekey_after: REKEY_AFTER,
        }
    }

    /// Appends application data to `out`. Full records are sealed at once, the last one stays open.
    ///
    /// # Errors
    /// [`SealError`]: the session cannot send any more.
    pub fn append(&mut self, out: &mut Vec<u8>, mut plaintext: &[u8]) -> Result<(), SealError> {
        while !plaintext.is_empty() {
            let start = self.open_record(out)?;
            let room = MAX_PLAINTEXT - (out.len() - start - HEADER);
            let (now, later) = plaintext.split_at(room.min(plaintext.len()));
            // The type and the tag too, so that sealing does not move the buffer.
            out.reserve(now.len() + 1 + TAG);
            out.extend_from_slice(now);
            plaintext = later;
            self.open = Some(OpenRecord {
                start,
                end: out.len(),
            });
            if now.len() == room {
                self.seal_open(out)?;
            }
        }
        Ok(())
    }

    /// Bytes that the next [`append`](Self::append) can add before another record begins: a whole record if
    /// none is open. Frames cut to this size do not straddle records.
    pub fn room(&self) -> usize {
        self.open.map_or(MAX_PLAINTEXT, |record| {
            MAX_PLAINTEXT - (record.end - record.start - HEADER)
        })
    }

    /// Seals the open record and adds what the peer is owed: afterwards all of `out` may be sent.
    ///
    /// # Errors
    /// [`SealError`]: the session cannot send any more.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        self.seal_open(out)?;
        if self.shared.reply_due.get() && !self.closed {
            self.update_key(out)?;
        }
        Ok(())
    }

    /// Whether the peer waits for our `KeyUpdate`. It need not be sent before the next data.
    pub fn owes_key_update(&self) -> bool {
        self.shared.reply_due.get()
    }

    /// Ends our direction in order: everything before has been sent, nothing follows.
    ///
    /// # Errors
    /// [`SealError`]: the session cannot send any more.
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        self.alert(out, WARNING, AlertDescription::CloseNotify)
    }

    /// Tells the peer why the session ends, where the error obliges us to.
    ///
    /// # Errors
    /// [`SealError`]: the session cannot send any more.
    pub fn fail(&mut self, out: &mut Vec<u8>, error: RecordError) -> Result<(), SealError> {
        match error.alert() {
            Some(description) => self.alert(out, FATAL, description),
            None => Ok(()),
        }
    }

    /// Ends the session because the application protocols do not agree (RFC 7301 §3.2).
    pub(in crate::tls) fn refuse_protocol(&mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        self.alert(out, FATAL, AlertDescription::NoApplicationProtocol)
    }

    #[cfg(test)]
    pub(super) fn rekey_after_for_test(&mut self, records: u64) {
        self.rekey_after = records;
    }

    fn alert(
        &mut self,
        out: &mut Vec<u8>,
        level: u8,
        description: AlertDescription,
    ) -> Result<(), SealError> {
        if self.closed {
            return Err(SealError::Closed);
        }
        self.seal_open(out)?;
        self.seal_message(out, ALERT, &[level, description.into()])?;
        self.closed = true;
        Ok(())
    }

    /// Start of the open record in `out`; opens one if there is none.
    fn open_record(&mut self, out: &mut Vec<u8>) -> Result<usize, SealError> {
        if let Some(OpenRecord { start, end }) = self.open {
            return if out.len() == end {
                Ok(start)
            } else {
                Err(SealError::BufferChanged)
            };
        }
        if self.closed {
            return Err(SealError::Closed);
        }
        if self.shared.reply_due.get() || self.key.sequence >= self.rekey_after {
            self.update_key(out)?;
        }
        let start = out.len();
        out.reserve(SMALL_BATCH);
        out.extend_from_slice(&[0; HEADER]);
        Ok(start)
    }

    fn seal_open(&mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        let Some(OpenRecord { start, end }) = self.open else {
            return Ok(());
        };
        if out.len() != end {
            return Err(SealError::BufferChanged);
        }
        self.open = None;
        self.seal_from(out, start, APPLICATION_DATA)
    }

    /// Announces a new key and takes it (RFC 8446 §4.6.3). Never asks for the peer's: each side counts its own
    /// records.
    pub(super) fn update_key(&mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        const UPDATE_NOT_REQUESTED: u8 = 0;
        self.seal_message(out, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, UPDATE_NOT_REQUESTED])?;
        self.key = self
            .shared
            .keys
            .borrow_mut()
            .next_sending()
            .map_err(SealError::Rekey)?;
        self.shared.reply_due.set(false);
        Ok(())
    }

    fn seal_message(
        &mut self,
        out: &mut Vec<u8>,
        content_type: u8,
        message: &[u8],
    ) -> Result<(), SealError> {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        out.extend_from_slice(message);
        self.seal_from(out, start, content_type)
    }

    /// Seals the record whose header begins at `start` and whose content reaches to the end of `out`.
    pub(super) fn seal_from(
        &mut self,
        out: &mut Vec<u8>,
        start: usize,
        content_type: u8,
    ) -> Result<(), SealError> {
        out.push(content_type);
        let body = start + HEADER;
        let header = header(out.len() - body + TAG);
        out[start..body].copy_from_slice(&header);
        let nonce = self.key.next_nonce();
        let tag = self
            .key
            .aead
            .seal_in_place_separate_tag(nonce, additional_data(header), &mut out[body..])
            .map_err(|_unspecified| SealError::Seal)?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("records", &self.key.sequence)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
