//! Receives descriptors that another process passes, and owns them at once. The only unsafe code of this part: no safe
//! interface gives them an owner.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// As many as the kernel passes at once (`SCM_MAX_FD`), lest some be left open that do not fit.
const MOST: usize = 253;

/// What was received.
#[derive(Debug)]
pub(super) struct Received {
    /// How many bytes.
    pub(super) length: usize,
    /// Closed when they are dropped, and not passed to other programs.
    pub(super) descriptors: Vec<OwnedFd>,
    /// Whether something of it did not fit, or the process has no room for descriptors.
    pub(super) is_truncated: bool,
}

/// Receives a packet, as much of it as `bytes` has room for. Never waits.
///
/// # Errors
/// The kernel's; `WouldBlock` if there is none.
pub(super) fn receive(socket: &impl AsRawFd, bytes: &mut [u8]) -> io::Result<Received> {
    let mut control = cmsg_space!([RawFd; MOST]);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let truncated = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
    let mut descriptors = Vec::new();
    // Control messages that did not fit are not told: then no descriptor was passed, as there is room for all.
    for message in received.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(passed) = message {
            // SAFETY: the kernel has made these descriptors for this call (unix(7), SCM_RIGHTS), and `recvmsg` gives each
            // once; nothing else knows their numbers.
            let owned = passed
                .into_iter()
                .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            descriptors.extend(owned);
        }
    }
    Ok(Received {
        length: received.bytes,
        descriptors,
        is_truncated: received.flags.intersects(truncated),
    })
}
