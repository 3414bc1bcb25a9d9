//! L1: who may open a connection to a workload. Pure: a snapshot and the facts of a connection go in, a
//! [`Verdict`] comes out. Forwarding demands the [`Allowed`] that only this module makes. Who may make a
//! request is [`http`]'s, what an authorizer that is asked says of it [`ext_authz`]'s.

mod bytes;
pub mod ext_authz;
pub mod http;
pub mod jwt;
mod layer4;
mod matching;
pub mod path;
mod pattern;
mod strict;
mod way;

pub(crate) use bytes::BytesView;
pub use bytes::{BytesClaim, CalledPort};
pub use layer4::without_requests;
pub use strict::{circumvented, is_waypoint};
pub use way::{ServedPort, Way, is_for, selects, way};

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::model::{
    Action, AuthorizationPolicy, NamespacedHostname, PolicyKey, Snapshot, SpiffeId, Workload,
};

/// What is known about a connection when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The TCP peer's address; what a header claims is never used.
    pub source: IpAddr,
    /// The verified identity of the TLS peer; `None` for plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// Who the waypoint would be that the connection went through: it counts as one more identity of the
    /// peer, so that a policy about either of the two holds.
    pub waypoint: Option<&'a SpiffeId>,
    /// The service that was called, if what its waypoint demands is met: in strict namespaces there is no
    /// other way in.
    pub through: Option<&'a NamespacedHostname>,
    /// The workload's own address and port, never a service's and never the tunnel's.
    pub destination: SocketAddr,
}

/// Proof that a connection was judged and allowed.
#[derive(Debug)]
pub struct Allowed(());

/// Why a connection was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A DENY policy matched.
    Explicit(PolicyKey),
    /// ALLOW policies exist and none matched.
    NotAllowed,
    /// The workload's namespace is strict, and this service's waypoint was gone around.
    Around(NamespacedHostname),
    /// The waypoint of the service that was called refuses it, or the workload's own.
    Demanded(http::HttpDenial),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Around(service) => write!(
                f,
                "around the waypoint of {service}, which culvert.dev/strict-waypoint forbids: call the service"
            ),
            Self::Explicit(policy) => write!(f, "explicitly denied by: {policy}"),
            Self::NotAllowed => f.write_str("allow policies exist, but none allowed"),
            Self::Demanded(denial) => write!(f, "{denial}"),
        }
    }
}

/// What policies that are only watched (`istio.io/dry-run`) would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// This DENY policy would have refused.
    WouldDeny(PolicyKey),
    /// This ALLOW policy would have allowed.
    WouldAllow(PolicyKey),
    /// ALLOW policies are watched and none would have allowed.
    WouldNotAllow,
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldDeny(policy) => write!(f, "dry-run: deny policy match: {policy}"),
            Self::WouldAllow(policy) => write!(f, "dry-run: allow policy match: {policy}"),
            Self::WouldNotAllow => f.write_str("dry-run: no allow policies match"),
        }
    }
}

/// The judgement of one connection.
#[derive(Debug)]
pub struct Verdict {
    /// What to do.
    pub decision: Result<Allowed, Denial>,
    /// What to report besides.
    pub dry_run: Vec<DryRun>,
}

/// Judges a connection to `workload` by every policy that speaks about it (Istio's order: DENY beats ALLOW;
/// where any ALLOW policy exists, one of them has to match). In a strict namespace it must not have gone around
/// a waypoint, besides.
pub fn judge(snapshot: &Snapshot, workload: &Workload, connection: &Connection<'_>) -> Verdict {
    let facts = matching::Facts::new(connection);
    let policies: Vec<&AuthorizationPolicy> =
        snapshot.policies_for(workload).map(AsRef::as_ref).collect();
    let of = |action, dry_run| {
        let selected = move |policy: &&&AuthorizationPolicy| {
            policy.action == action && policy.dry_run == dry_run
        };
        policies.iter().filter(selected).copied()
    };
    let first_match =
        |action, dry_run| of(action, dry_run).find(|policy| facts.match_policy(policy));

    let mut dry_runs = Vec::new();
    if let Some(policy) = first_match(Action::Deny, true) {
        dry_runs.push(DryRun::WouldDeny(policy.key.clone()));
    }
    if let Some(policy) = first_match(Action::Deny, false) {
        let decision = Err(Denial::Explicit(policy.key.clone()));
        return Verdict {
            decision,
            dry_run: dry_runs,
        };
    }
    if let Some(service) = circumvented(snapshot, workload, connection) {
        return Verdict {
            decision: Err(Denial::Around(service.clone())),
            dry_run: dry_runs,
        };
    }
    if of(Action::Allow, true).next().is_some() {
        dry_runs.push(match first_match(Action::Allow, true) {
            Some(policy) => DryRun::WouldAllow(policy.key.clone()),
            None => DryRun::WouldNotAllow,
        });
    }
    let restricted = of(Action::Allow, false).next().is_some();
    let decision = if !restricted || first_match(Action::Allow, false).is_some() {
        Ok(Allowed(()))
    } else {
        Err(Denial::NotAllowed)
    };
    Verdict {
        decision,
        dry_run: dry_runs,
    }
}

#[cfg(test)]
mod tests;
