//! What layer 7 says: the demands of the service that was called, or of the workload's own waypoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::StatusCode;
use userspace_l7::model::{
    Demands, HttpPolicy, HttpPolicyAction, JwtKeys, Peer, TunnelProtocol, Workload,
};
use userspace_l7::policy::Way;
use userspace_l7::policy::http::{HttpDecision, HttpRequest, HttpVerdict, judge_http};
use userspace_l7::policy::jwt::{self, Claims, KeySet, TokenError};

use super::super::routing::Routing;
use super::super::{Expectation, Inquiry, PolicyStep, wording};
use super::{Judgement, called, client_address, verdict, way};

/// What has to be met, and how.
pub(super) struct Demanded<'a> {
    demands: &'a Demands,
    /// The port that was called, as who demands this counts ports.
    port: u16,
}

/// What is demanded by the service that was called, or by the workload's own waypoint; and on the client's own way by
/// the services that it leads to.
pub(super) fn demands<'a>(
    inquiry: &Inquiry<'a>,
    routing: &Routing<'a>,
    servers: &[(Arc<Workload>, SocketAddr)],
) -> Vec<Demanded<'a>> {
    let Some(layer7) = routing.layer7 else {
        let own = inquiry.snapshot.workload_at(inquiry.dialled.ip());
        let own = own.and_then(|own| inquiry.snapshot.workloads_layer7.get(&own.uid));
        let own = own.map(|own| Demanded {
            demands: &own.demands,
            port: inquiry.dialled.port(),
        });
        return own.into_iter().collect();
    };
    if !routing.is_http {
        return Vec::new();
    }
    let first = called(routing).zip(servers.first());
    let taken =
        first.and_then(|(called, (server, address))| way(inquiry, called, server, *address));
    let by = match &taken {
        Some(Way::Consumer(by)) => &**by,
        Some(Way::Producer) | None => &[],
    };
    let besides = by.iter().filter_map(|(service, port)| {
        let layer7 = inquiry.snapshot.services_layer7.get(service)?;
        Some(Demanded {
            demands: &layer7.demands,
            port: *port,
        })
    });
    let own = Demanded {
        demands: &layer7.demands,
        port: inquiry.dialled.port(),
    };
    std::iter::once(own).chain(besides).collect()
}

pub(super) fn layer7(
    inquiry: &Inquiry<'_>,
    demanded: &Demanded<'_>,
    servers: &[(Arc<Workload>, SocketAddr)],
    judged: &mut Judgement,
) {
    let demands = demanded.demands;
    let server = servers.first();
    let identity = inquiry.client.identity();
    let is_proven = inquiry.client.protocol == TunnelProtocol::Hbone;
    let token = match token(inquiry, demands) {
        Ok(token) => token,
        Err(error) => {
            judged.denied = Some(Expectation::answered(
                StatusCode::UNAUTHORIZED,
                match error {
                    TokenError::NoKeys => format!(
                        "the request's token is refused, since the keys of its issuer are missing ({error}): `culvert status` says why"
                    ),
                    _ => format!("the request's token is refused: {error}"),
                },
            ));
            None
        }
    };
    let request = HttpRequest {
        head: inquiry.head(),
        normalization: inquiry.snapshot.path_normalization,
        identity: is_proven.then_some(&identity),
        source: client_address(inquiry),
        destination: server.map_or(inquiry.dialled, |(_, address)| *address),
        service_port: demanded.port,
        token: token.as_ref(),
    };
    let at = match server {
        Some((workload, _)) if is_culvert(workload) => workload.node.to_string(),
        Some(_) | None => "client's node".to_owned(),
    };
    for policy in &demands.authorization {
        let rule = matched_rule(demands, policy, &request);
        judged.policies.push(policy_step(policy, rule, &at));
    }
    if judged.denied.is_none() {
        decide(demands, &request, judged);
    }
}

fn is_culvert(workload: &Workload) -> bool {
    workload.protocol == TunnelProtocol::Hbone && workload.peer == Peer::Culvert
}

fn token(inquiry: &Inquiry<'_>, demands: &Demands) -> Result<Option<Claims>, TokenError> {
    let keys = |keys: &JwtKeys| match keys {
        JwtKeys::Inline(json) => KeySet::parse(json).ok().map(Arc::new),
        JwtKeys::Remote { source, .. } => inquiry.keys.get(source),
    };
    jwt::authenticate(
        &demands.authentication,
        &keys,
        &inquiry.head(),
        SystemTime::now(),
    )
}

fn policy_step(policy: &HttpPolicy, rule: Option<usize>, at: &str) -> PolicyStep {
    let action = match &policy.action {
        HttpPolicyAction::Allow => "ALLOW".to_owned(),
        HttpPolicyAction::Deny => "DENY".to_owned(),
        HttpPolicyAction::Audit => "AUDIT".to_owned(),
        HttpPolicyAction::Custom(_) => "CUSTOM".to_owned(),
    };
    PolicyStep {
        name: policy.key.to_string(),
        action,
        layer: "L7".to_owned(),
        at: at.to_owned(),
        verdict: verdict(rule, policy.dry_run) + &wording::asks(policy),
        is_match: rule.is_some() && !policy.dry_run,
    }
}

/// The first rule that matches by itself: as an ALLOW policy that stands alone it lets pass exactly what it matches.
fn matched_rule(
    demands: &Demands,
    policy: &HttpPolicy,
    request: &HttpRequest<'_>,
) -> Option<usize> {
    policy.rules.iter().position(|rule| {
        let alone = HttpPolicy {
            key: policy.key.clone(),
            action: HttpPolicyAction::Allow,
            dry_run: false,
            rules: vec![rule.clone()],
        };
        let only = Demands {
            authorization: vec![Arc::new(alone)],
            ..demands.clone()
        };
        matches!(
            judge_http(&only, request).decision,
            HttpDecision::Allowed(_)
        )
    })
}

fn decide(demands: &Demands, request: &HttpRequest<'_>, judged: &mut Judgement) {
    let mut verdict = judge_http(demands, request);
    if let HttpDecision::Ask(ask) = verdict.decision {
        let names: Vec<&str> = ask
            .authorizers
            .iter()
            .map(|asked| &*asked.authorizer.name)
            .collect();
        judged.allowed = format!(
            "the application answers, if {} lets the request pass",
            names.join(" and ")
        );
        verdict = ask.then.judge(demands, request);
    }
    let HttpVerdict { decision, .. } = verdict;
    if let HttpDecision::Denied(denial) = decision {
        let why = wording::denial(&denial);
        judged.denied = Some(Expectation::answered(denial.status(), why));
    }
}
