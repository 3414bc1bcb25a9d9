//! What capture puts back when it is gone, as operators count it.

use std::fmt;

/// A kind of thing that capture keeps in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// The pod's `lo` is up.
    Loopback,
    /// A routing rule of a pod's.
    Rule,
    /// A route of a pod's.
    Route,
    /// The agent's listeners in a pod.
    Listener,
    /// The places where programs find them.
    Slot,
    /// The program that gives a pod's connections to them.
    SkLookup,
    /// A program on a pod's device.
    Tcx,
    /// An address by which programs know a pod.
    Address,
    /// The entry that has a pod captured.
    Entry,
    /// The name of a map.
    Map,
    /// A program on the root cgroup.
    Cgroup,
}

impl Repair {
    /// The value of the `kind` label under which the repair is counted.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Rule => "rule",
            Self::Route => "route",
            Self::Listener => "listener",
            Self::Slot => "slot",
            Self::SkLookup => "sk_lookup",
            Self::Tcx => "tcx",
            Self::Address => "address",
            Self::Entry => "entry",
            Self::Map => "map",
            Self::Cgroup => "cgroup",
        }
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
