//! Why a server could not reach its application: what it tells the client's node besides the status.
//!
//! ztunnel has one status, 503, for all of these. Culvert adds a header that others ignore, so that the client's
//! `connect` can fail with the number that it would have without a mesh.

use std::fmt;
use std::io;

/// Why nobody answered. Named on the wire as in `errno(3)`: numbers differ between architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Nothing listens on the port.
    Refused,
    /// Nobody has the address.
    HostUnreachable,
    /// No route leads there.
    NetworkUnreachable,
    /// No answer at all.
    TimedOut,
}

impl Cause {
    const ALL: [Self; 4] = [
        Self::Refused,
        Self::HostUnreachable,
        Self::NetworkUnreachable,
        Self::TimedOut,
    ];

    /// The cause of a failed `connect`, if it is one that a network has.
    pub fn of(error: &io::Error) -> Option<Self> {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Some(Self::Refused),
            io::ErrorKind::HostUnreachable => Some(Self::HostUnreachable),
            io::ErrorKind::NetworkUnreachable => Some(Self::NetworkUnreachable),
            io::ErrorKind::TimedOut => Some(Self::TimedOut),
            _ => None,
        }
    }

    /// Reads a name; a cause that a later version may know is as good as none.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Refused => "ECONNREFUSED",
            Self::HostUnreachable => "EHOSTUNREACH",
            Self::NetworkUnreachable => "ENETUNREACH",
            Self::TimedOut => "ETIMEDOUT",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_survives_the_wire() {
        for cause in Cause::ALL {
            assert_eq!(Cause::parse(cause.name()), Some(cause));
        }
        for unknown in ["", "111", "econnrefused", "EPERM"] {
            assert_eq!(Cause::parse(unknown), None, "{unknown}");
        }
    }
}
