//! How a ring is set up on this kernel, and why it cannot be where it cannot.

use std::rc::Rc;
use std::{fs, io};

use io_uring::IoUring;

use super::buffers::Pool;
use super::provided::Provided;

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 4 * SUBMISSIONS;
/// tokio-uring's own ring carries no data: as small as they come.
const RUNTIME_SUBMISSIONS: u32 = 8;

/// Why io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum RingUnavailable {
    /// The sysctl `kernel.io_uring_disabled` (Linux 6.6) forbids it.
    #[error("io_uring is disabled by sysctl kernel.io_uring_disabled={value}: set it to 0")]
    Sysctl {
        /// The sysctl's value: 1 spares privileged processes, 2 nobody.
        value: u8,
    },
    /// `io_uring_setup` is not permitted: in a container, that is the seccomp profile.
    #[error(
        "io_uring is refused to this process: allow the io_uring system calls in its seccomp profile"
    )]
    Forbidden,
    /// The kernel was built without it, or seccomp pretends so.
    #[error("this kernel has no io_uring: it needs Linux 5.19 with CONFIG_IO_URING")]
    Missing,
    /// The kernel's io_uring cannot pick receive buffers from a ring.
    #[error("this kernel's io_uring has no provided buffer rings: Linux 5.19 or later is needed")]
    TooOld,
    /// Anything else the kernel answered.
    #[error("io_uring cannot be set up")]
    Setup(#[source] io::Error),
}

/// Whether workers can use `Backend::Uring` here.
///
/// # Errors
///
/// The reason why not, in one sentence that says what to do.
pub fn probe() -> Result<(), RingUnavailable> {
    let ring = data_ring().map_err(|error| explain_setup(error, disabled_by_sysctl()))?;
    let pool = Pool::new().map_err(RingUnavailable::Setup)?;
    let provided = Provided::register(&ring, Rc::clone(&pool)).map_err(explain_buffer_ring);
    // The ring first: it uses the registered memory.
    drop(ring);
    provided.map(drop)
}

fn explain_setup(error: io::Error, sysctl: u8) -> RingUnavailable {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => RingUnavailable::Missing,
        Some(libc::EPERM | libc::EACCES) if sysctl > 0 => RingUnavailable::Sysctl { value: sysctl },
        Some(libc::EPERM | libc::EACCES) => RingUnavailable::Forbidden,
        _ => RingUnavailable::Setup(error),
    }
}

fn explain_buffer_ring(error: io::Error) -> RingUnavailable {
    match error.raw_os_error() {
        Some(libc::EINVAL) => RingUnavailable::TooOld,
        _ => RingUnavailable::Setup(error),
    }
}

/// How the kernel runs what a ring's completions need, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completing {
    /// When we ask for it (Linux 6.1).
    Deferred,
    /// When we enter the kernel anyway (Linux 5.19).
    Cooperative,
    /// When it wants, by interrupting us.
    Interrupting,
}

impl Completing {
    pub(super) fn ring(self) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS);
        match self {
            Self::Deferred => {
                builder.setup_defer_taskrun().setup_single_issuer();
                builder.setup_taskrun_flag().setup_submit_all();
            }
            Self::Cooperative => {
                builder
                    .setup_coop_taskrun()
                    .setup_taskrun_flag()
                    .setup_submit_all();
            }
            Self::Interrupting => {}
        }
        builder.build(SUBMISSIONS)
    }
}

/// The ring for the data, with the best that the kernel has.
pub(super) fn data_ring() -> io::Result<IoUring> {
    first_accepted(
        [
            Completing::Deferred,
            Completing::Cooperative,
            Completing::Interrupting,
        ]
        .map(|completing| move || completing.ring()),
    )
}

/// The runtime, on tokio-uring's own ring. Not `DEFER_TASKRUN`: tokio-uring never enters for events
/// and would hang.
pub(super) fn runtime() -> io::Result<tokio_uring::Runtime> {
    let mut single = tokio_uring::uring_builder();
    single
        .setup_coop_taskrun()
        .setup_single_issuer()
        .setup_taskrun_flag();
    let mut cooperative = tokio_uring::uring_builder();
    cooperative.setup_coop_taskrun().setup_taskrun_flag();
    let plain = tokio_uring::uring_builder();
    first_accepted([single, cooperative, plain].map(|flags| {
        move || {
            let mut builder = tokio_uring::builder();
            tokio_uring::Runtime::new(builder.entries(RUNTIME_SUBMISSIONS).uring_builder(&flags))
        }
    }))
}

fn first_accepted<T, F: FnOnce() -> io::Result<T>>(
    attempts: impl IntoIterator<Item = F>,
) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for attempt in attempts {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            outcome => return outcome,
        }
    }
    Err(last)
}

fn disabled_by_sysctl() -> u8 {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reason: &RingUnavailable, says: &str) {
        assert!(reason.to_string().contains(says), "{reason}");
    }

    #[test]
    fn reasons_are_told_apart() {
        let errno = io::Error::from_raw_os_error;
        check(&explain_setup(errno(libc::ENOSYS), 0), "CONFIG_IO_URING");
        check(
            &explain_setup(errno(libc::EPERM), 2),
            "kernel.io_uring_disabled=2",
        );
        check(&explain_setup(errno(libc::EPERM), 0), "seccomp");
        check(
            &explain_buffer_ring(errno(libc::EINVAL)),
            "Linux 5.19 or later",
        );
        check(
            &explain_buffer_ring(errno(libc::ENOMEM)),
            "cannot be set up",
        );
    }

    #[test]
    fn unknown_flags_step_down_and_other_errors_do_not() {
        let errno = io::Error::from_raw_os_error;
        let attempt = |result: Result<u8, i32>| move || result.map_err(errno);
        let older = first_accepted([Err(libc::EINVAL), Ok(2)].map(attempt));
        assert_eq!(older.unwrap(), 2);
        let forbidden = first_accepted([Err(libc::EPERM), Ok(2)].map(attempt));
        assert_eq!(forbidden.unwrap_err().raw_os_error(), Some(libc::EPERM));
        let ancient = first_accepted([Err(libc::EINVAL); 2].map(attempt));
        assert_eq!(ancient.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn the_ring_is_usable_here() {
        probe().unwrap();
    }
}
