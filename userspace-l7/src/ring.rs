//! L2: the io_uring runtime of a worker thread, and the only module that names tokio-uring, io-uring or
//! libc.
//!
//! ```text
//!   spawn_local tasks ── Tcp, Listener ──┐ recv, blocked sends, readiness
//!        ▲                               ▼
//!        │ wakes               driver: our ring (DEFER_TASKRUN, provided buffers)
//!        │                               │ eventfd
//!   tokio-uring runtime (unmodified) ◄───┘   epoll backend: the same sockets over AsyncFd
//! ```
//!
//! The rules that make it sound: an operation owns its descriptor and its buffer until the kernel's final
//! completion; a descriptor is closed only after that; dropping a future cancels its operation.

mod buffers;
mod driver;
mod listener;
mod operation;
mod probe;
mod provided;
mod readiness;
mod socket;
mod tcp;
#[cfg(test)]
mod tests;
mod worker;

pub use buffers::{RecvBuf, SendBuf};
pub use listener::{Listener, is_passing};
pub use probe::{RingUnavailable, probe};
pub use readiness::Readiness;
pub use tcp::{Rest, Tcp};
pub use worker::{Backend, run};
