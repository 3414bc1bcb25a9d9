//! Whether one policy matches one connection.

use std::net::IpAddr;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::Connection;
use super::pattern::{glob, match_text};
use crate::model::{AuthorizationPolicy, Match, Rule, ServiceAccountMatch, SpiffeId, StringMatch};

/// The connection in the form that matching wants: addresses canonical, the principal spelled out once.
pub(super) struct Facts<'a> {
    source: IpAddr,
    destination: IpAddr,
    destination_port: u16,
    identities: SmallVec<[(&'a SpiffeId, String); 2]>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(connection: &Connection<'a>) -> Self {
        let identities = connection.identity.into_iter().chain(connection.waypoint);
        Self {
            source: connection.source.to_canonical(),
            destination: connection.destination.ip().to_canonical(),
            destination_port: connection.destination.port(),
            identities: identities.map(|id| (id, id.principal())).collect(),
        }
    }

    pub(super) fn match_policy(&self, policy: &AuthorizationPolicy) -> bool {
        policy.rules.iter().any(|rule| self.match_rule(rule))
    }

    fn match_rule(&self, rule: &Rule) -> bool {
        let clause_holds =
            |matches: &[Match]| matches.is_empty() || matches.iter().any(|one| self.match_one(one));
        rule.clauses
            .iter()
            .all(|clause| clause_holds(&clause.matches))
    }

    fn match_one(&self, one: &Match) -> bool {
        if *one == Match::default() {
            return false;
        }
        self.match_identity(one)
            && field(&one.source_ips, &one.not_source_ips, |net| {
                contains(net, self.source)
            })
            && field(&one.destination_ips, &one.not_destination_ips, |net| {
                contains(net, self.destination)
            })
            && field(&one.destination_ports, &one.not_destination_ports, |port| {
                *port == self.destination_port
            })
    }

    /// A peer without identity satisfies no positive field and every negative one.
    fn match_identity(&self, one: &Match) -> bool {
        let identities = || self.identities.iter();
        let namespace =
            |pattern: &StringMatch| identities().any(|(id, _)| glob(pattern, id.namespace()));
        let principal = |pattern: &StringMatch| {
            identities().any(|(_, principal)| match_text(pattern, principal))
        };
        let account = |wanted: &ServiceAccountMatch| {
            identities().any(|(id, _)| {
                id.namespace() == &*wanted.namespace
                    && id.service_account() == &*wanted.service_account
            })
        };
        field(&one.namespaces, &one.not_namespaces, namespace)
            && field(&one.principals, &one.not_principals, principal)
            && field(&one.service_accounts, &one.not_service_accounts, account)
    }
}

/// An empty positive list asks for nothing.
fn field<T>(wanted: &[T], unwanted: &[T], holds: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&holds)) && !unwanted.iter().any(&holds)
}

fn contains(net: &IpNet, address: IpAddr) -> bool {
    net.contains(&address)
}
