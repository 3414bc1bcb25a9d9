//! The servers over real sockets, and the dump against the shapes that `istioctl` reads.

mod dump;
mod http;

/// A dump as an agent serves it.
pub(crate) fn sample_dump() -> Vec<u8> {
    super::config_dump::write(&dump::sources()).unwrap()
}
