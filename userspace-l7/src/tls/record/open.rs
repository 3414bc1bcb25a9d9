//! The receiving half: records are opened inside the buffer that they were received in.

use std::fmt;
use std::mem;
use std::ops::Range;
use std::rc::Rc;

use rustls::AlertDescription;

use super::{
    ALERT, APPLICATION_DATA, HANDSHAKE, HEADER, KEY_UPDATE, MAX_CIPHERTEXT, MAX_PLAINTEXT,
    NEW_SESSION_TICKET, RecordError, RecordKey, Shared, TAG, additional_data,
};

/// Key updates that a peer may send in a row without data between them: each costs us a derivation.
const MAX_KEY_UPDATES: u32 = 32;

/// Longest handshake message that is put together from several records. Tickets are far below.
const MAX_HANDSHAKE: usize = 1 << 16;

/// Handshake header: type and a length of 24 bits.
const HANDSHAKE_HEADER: usize = 4;

/// Opens what is received.
///
/// Only a record that straddles two reads is copied. Bytes that came along with the handshake are already
/// inside: call [`open`](Self::open) with an empty input once before waiting for the first read.
pub struct Opener {
    key: RecordKey,
    shared: Rc<Shared>,
    /// Records or the beginning of one, from earlier inputs; `carry[..taken]` is done with.
    carry: Vec<u8>,
    taken: usize,
    /// The beginning of a handshake message that goes on in the next record.
    handshake: Vec<u8>,
    key_updates: u32,
    end: Option<Result<(), RecordError>>,
}

/// What [`Opener::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// Application data at this place of the input. Never empty.
    InPlace(Range<usize>),
    /// Application data of a record that straddled inputs. Never empty.
    Carried(&'a [u8]),
    /// All input is taken; more is needed.
    Blocked,
    /// The peer closed its direction in order; whatever follows is ignored.
    Closed,
}

/// Like [`Opened`], with places instead of borrows.
enum Step {
    InPlace(Range<usize>),
    Carried(Range<usize>),
    Blocked,
    Closed,
}

impl Opener {
    pub(super) fn new(key: RecordKey, shared: Rc<Shared>, early: Vec<u8>) -> Self {
        Self {
            key,
            shared,
            carry: early,
            taken: 0,
            handshake: Vec::new(),
            key_updates: 0,
            end: None,
        }
    }

    /// Opens records of `input[*position..]` up to the next piece of application data, and moves `position`
    /// behind what was taken. Call it again with the same input until it is [`Opened::Blocked`]: then all of
    /// the input is taken.
    ///
    /// # Errors
    /// [`RecordError`], now and on every later call.
    pub fn next<'a>(
        &'a mut self,
        input: &mut [u8],
        position: &mut usize,
    ) -> Result<Opened<'a>, RecordError> {
        match self.step(input, position) {
            Ok(Step::InPlace(place)) => Ok(Opened::InPlace(place)),
            Ok(Step::Carried(place)) => Ok(Opened::Carried(&self.carry[place])),
            Ok(Step::Blocked) => Ok(Opened::Blocked),
            Ok(Step::Closed) => Ok(Opened::Closed),
            Err(error) => {
                self.end = Some(Err(error));
                Err(error)
            }
        }
    }

    /// Opens all of `input` and hands each piece of application data to `each`, in order. `false`: the peer
    /// closed its direction in order.
    ///
    /// # Errors
    /// [`RecordError`], now and on every later call, or the first error of `each`; the rest of the input is
    /// lost then.
    pub fn open<E: From<RecordError>>(
        &mut self,
        input: &mut [u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut position = 0;
        loop {
            match self.next(input, &mut position)? {
                Opened::InPlace(place) => each(&input[place])?,
                Opened::Carried(plaintext) => each(plaintext)?,
                Opened::Blocked => return Ok(true),
                Opened::Closed => return Ok(false),
            }
        }
    }

    /// The connection has ended: was that the peer's intention?
    ///
    /// # Errors
    /// [`RecordError::Truncated`] when no `close_notify` came before, or the error that ended the session.
    pub fn end_of_input(&self) -> Result<(), RecordError> {
        self.end.unwrap_or(Err(RecordError::Truncated))
    }

    fn step(&mut self, input: &mut [u8], position: &mut usize) -> Result<Step, RecordError> {
        loop {
            match self.end {
                Some(Ok(())) => {
                    // "Any data received after a closure alert has been received MUST be ignored" (RFC 8446
                    // §6.1).
                    *position = input.len();
                    return Ok(Step::Closed);
                }
                Some(Err(error)) => return Err(error),
                None => {}
            }
            let place = if self.taken < self.carry.len() {
                let Some(record) = self.complete_carried(input, position)? else {
                    return Ok(Step::Blocked);
                };
                let mut carry = mem::take(&mut self.carry);
                let content = self.open_record(&mut carry[record.clone()]);
                self.carry = carry;
                self.taken = record.end;
                content?.map(|length| Step::Carried(content_place(&record, length)))
            } else {
                // Freed, not kept: an idle tunnel holds no buffer.
                self.carry = Vec::new();
                self.taken = 0;
                let Some(record) = self.next_in_place(input, position)? else {
                    return Ok(Step::Blocked);
                };
                let length = self.open_record(&mut input[record.clone()])?;
                length.map(|length| Step::InPlace(content_place(&record, length)))
            };
            if let Some(step) = place {
                return Ok(step);
            }
        }
    }

    /// Fills up the record that an earlier input began. `None`: still incomplete, all input taken.
    fn complete_carried(
        &mut self,
        input: &[u8],
        position: &mut usize,
    ) -> Result<Option<Range<usize>>, RecordError> {
        loop {
            let begun = &self.carry[self.taken..];
            let wanted = record_length(begun)?;
            let missing = wanted.saturating_sub(begun.len());
            if missing == 0 {
                return Ok(Some(self.taken..self.taken + wanted));
            }
            let rest = &input[*position..];
            let take = missing.min(rest.len());
            self.carry.extend_from_slice(&rest[..take]);
            *position += take;
            if take < missing {
                return Ok(None);
            }
        }
    }

    /// The next whole record of the input. `None`: its remnant is carried, all input taken.
    fn next_in_place(
        &mut self,
        input: &[u8],
        position: &mut usize,
    ) -> Result<Option<Range<usize>>, RecordError> {
        let start = *position;
        let rest = &input[start..];
        let wanted = record_length(rest)?;
        if rest.len() < wanted {
            self.carry
                .reserve_exact(if rest.is_empty() { 0 } else { wanted });
            self.carry.extend_from_slice(rest);
            *position = input.len();
            return Ok(None);
        }
        *position = start + wanted;
        Ok(Some(start..start + wanted))
    }

    /// Opens one whole record in place. `Some(length)`: application data behind the header; `None`: the record
    /// was for the session itself, or empty.
    fn open_record(&mut self, record: &mut [u8]) -> Result<Option<usize>, RecordError> {
        let (head, body) = record.split_at_mut(HEADER);
        let head: [u8; HEADER] = head.try_into().map_err(|_length| RecordError::Malformed)?;
        if head[0] != APPLICATION_DATA {
            return Err(RecordError::UnexpectedRecord(head[0]));
        }
        if body.len() <= TAG {
            return Err(RecordError::Empty);
        }
        let nonce = self.key.next_nonce();
        let inner = self
            .key
            .aead
            .open_in_place(nonce, additional_data(head), body)
            .map_err(|_unspecified| RecordError::Corrupt)?;
        if inner.len() > MAX_PLAINTEXT + 1 {
            return Err(RecordError::Overflow(inner.len()));
        }
        let Some(length) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(RecordError::Empty);
        };
        let (content_type, content) = (inner[length], &inner[..length]);
        // "Handshake messages MUST NOT be interleaved with other record types" (RFC 8446 §5.1).
        if content_type != HANDSHAKE && !self.handshake.is_empty() {
            return Err(RecordError::UnexpectedRecord(content_type));
        }
        match content_type {
            APPLICATION_DATA => {
                self.key_updates = 0;
                Ok(Some(length).filter(|length| *length > 0))
            }
            HANDSHAKE => self.take_handshake(content).map(|()| None),
            ALERT => self.take_alert(content).map(|()| None),
            other => Err(RecordError::UnexpectedRecord(other)),
        }
    }

    fn take_handshake(&mut self, content: &[u8]) -> Result<(), RecordError> {
        if content.is_empty() {
            // "Implementations MUST NOT send zero-length fragments of Handshake types" (RFC 8446 §5.1).
            return Err(RecordError::Empty);
        }
        let mut messages = mem::take(&mut self.handshake);
        messages.extend_from_slice(content);
        let mut rest = messages.as_slice();
        while let [kind, a, b, c, after @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length > MAX_HANDSHAKE {
                return Err(RecordError::Malformed);
            }
            let Some((body, following)) = after.split_at_checked(length) else {
                break;
            };
            self.take_message(*kind, body, following.is_empty())?;
            rest = following;
        }
        debug_assert!(
            rest.len() <= HANDSHAKE_HEADER + MAX_HANDSHAKE,
            "longer ones are refused"
        );
        self.handshake = rest.to_vec();
        Ok(())
    }

    fn take_message(&mut self, kind: u8, body: &[u8], is_last: bool) -> Result<(), RecordError> {
        let for_client = matches!(*self.shared.keys.borrow(), super::TrafficKeys::Client(_));
        match kind {
            // Sessions are not resumed: a ticket has no use.
            NEW_SESSION_TICKET if for_client => Ok(()),
            KEY_UPDATE => {
                let requested = match body {
                    [0] => false,
                    [1] => true,
                    _ => return Err(RecordError::Malformed),
                };
                // "Handshake messages … MUST NOT span key changes" (RFC 8446 §5.1).
                if !is_last {
                    return Err(RecordError::UnexpectedHandshake(kind));
                }
                self.key_updates += 1;
                if self.key_updates > MAX_KEY_UPDATES {
                    return Err(RecordError::KeyUpdateFlood);
                }
                let next = self.shared.keys.borrow_mut().next_receiving();
                self.key = next.map_err(|_source| RecordError::Rekey)?;
                if requested {
                    self.shared.reply_due.set(true);
                }
                Ok(())
            }
            other => Err(RecordError::UnexpectedHandshake(other)),
        }
    }

    fn take_alert(&mut self, content: &[u8]) -> Result<(), RecordError> {
        let [_level, description] = content else {
            return Err(RecordError::Malformed);
        };
        match AlertDescription::from(*description) {
            AlertDescription::CloseNotify => {
                self.end = Some(Ok(()));
                Ok(())
            }
            // Announces a close_notify (RFC 8446 §6.1), says nothing itself.
            AlertDescription::UserCanceled => Ok(()),
            // "all the alerts listed in Section 6.2 MUST be … treated as error alerts when received regardless
            // of the AlertLevel" (RFC 8446 §6).
            other => Err(RecordError::PeerAlert(other)),
        }
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("records", &self.key.sequence)
            .field("carried", &(self.carry.len() - self.taken))
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Length of the record that `bytes` begin with, header included; only the header's if that is incomplete.
fn record_length(bytes: &[u8]) -> Result<usize, RecordError> {
    let &[_type, _, _, high, low, ..] = bytes else {
        return Ok(HEADER);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_CIPHERTEXT {
        return Err(RecordError::Overflow(length));
    }
    Ok(HEADER + length)
}

/// Where a record's content lies.
fn content_place(record: &Range<usize>, length: usize) -> Range<usize> {
    record.start + HEADER..record.start + HEADER + length
}
