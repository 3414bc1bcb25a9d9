//! `culvert explain`: the whole decision about a connection or request, from a running agent.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::Write;

use clap::Args;

use super::table::{Table, visible};
use super::{AdminArgs, CliError, OutputArgs, client};
use crate::admin::{Explanation, RouteStep};

/// Arguments of `culvert explain`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ExplainArgs {
    /// Who asks: a pod, or a service account, which stands for any of its pods.
    #[arg(long, value_name = "NAMESPACE/POD|NAMESPACE/ACCOUNT")]
    pub from: String,
    /// Whither: a service's name, whole or as the client would write it, or an address; and a port.
    #[arg(long, value_name = "HOST:PORT")]
    pub to: String,
    /// Method of the request.
    #[arg(value_name = "METHOD", default_value = "GET")]
    pub method: String,
    /// Path and query of the request.
    #[arg(value_name = "PATH", default_value = "/")]
    pub path: String,
    /// A header field of the request; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    pub headers: Vec<String>,
    /// The agent; the one of the client's node knows best whether the client is captured.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// The format.
    #[command(flatten)]
    pub output: OutputArgs,
}

pub(super) fn run(args: &ExplainArgs, out: &mut impl Write) -> Result<(), CliError> {
    let explanation = client::explain(args)?;
    args.output
        .print(out, &explanation, |_wide| text(&explanation))
}

pub(super) fn text(explanation: &Explanation) -> String {
    let mut text = String::new();
    steps(&mut text, explanation);
    limits(&mut text, explanation);
    backends(&mut text, explanation);
    policies(&mut text, explanation);
    let expected = &explanation.expected;
    let result = match (expected.status, expected.is_delivered) {
        (Some(status), _) => format!("{status}: {}", expected.why),
        (None, true) => format!("delivered: {}", expected.why),
        (None, false) => format!("refused: {}", expected.why),
    };
    text.push('\n');
    line(&mut text, "expected", &result);
    text
}

fn steps(text: &mut String, explanation: &Explanation) {
    let client = &explanation.client;
    line(
        text,
        "client",
        &format!(
            "{}/{} on {}, {}, {}",
            client.namespace,
            client.pod,
            visible(client.node.clone()),
            client.address,
            client.identity
        ),
    );
    line(text, "", &client.capture);
    let to = &explanation.destination;
    line(
        text,
        "destination",
        &format!("{} is {}, {}", to.asked, to.address, to.meaning),
    );
    let waypoint = &explanation.waypoint;
    let name = waypoint.name.as_deref().unwrap_or("none");
    let protocol = waypoint.protocol.as_ref().map(|it| format!(" ({it})"));
    line(
        text,
        "waypoint",
        &format!("{name}{}: {}", protocol.unwrap_or_default(), waypoint.why),
    );
    if let Some(route) = &explanation.route {
        route_lines(text, route);
    }
}

fn route_lines(text: &mut String, route: &RouteStep) {
    let origin = route.origin.as_deref().unwrap_or("none");
    let rule = route.rule.as_ref().map(|rule| format!(", rule {rule}"));
    line(
        text,
        "route",
        &format!("{origin}{}", rule.unwrap_or_default()),
    );
    if let Some(matched) = &route.matched {
        line(text, "", &format!("matches {matched}"));
    }
    for filter in &route.filters {
        line(text, "", filter);
    }
    line(text, "", &route.outcome);
}

/// A label and what it is about. What others named must not reach the terminal as control characters.
fn line(text: &mut String, label: &str, value: &str) {
    // Writing to a String cannot fail.
    let _infallible = writeln!(text, "{label:<12} {}", visible(value.to_owned()));
}

fn backends(text: &mut String, explanation: &Explanation) {
    if explanation.backends.is_empty() {
        return;
    }
    let mut table = Table::new(&["BACKEND", "PORT", "WEIGHT", "SHARE", "ENDPOINTS"]);
    let mut endpoints = Table::new(&[
        "BACKEND", "ENDPOINT", "NODE", "ADDRESS", "HEALTH", "CARRIAGE", "CHOSEN", "LAYER 4",
    ]);
    for backend in &explanation.backends {
        let takers = backend.endpoints.iter().filter(|one| one.takes_requests);
        table.push([
            backend.name.clone(),
            backend
                .port
                .map(|port| port.to_string())
                .unwrap_or_default(),
            backend
                .weight
                .map(|weight| weight.to_string())
                .unwrap_or_default(),
            format!("{}%", backend.share),
            format!("{}/{}", takers.count(), backend.endpoints.len()),
        ]);
        for endpoint in &backend.endpoints {
            endpoints.push([
                backend.name.clone(),
                endpoint.workload.clone(),
                endpoint.node.clone(),
                endpoint.address.clone(),
                endpoint.health.clone(),
                endpoint.carriage.clone(),
                if endpoint.takes_requests { "yes" } else { "no" }.to_owned(),
                endpoint.verdict.clone(),
            ]);
        }
    }
    text.push('\n');
    text.push_str(&table.text());
    text.push('\n');
    text.push_str(&endpoints.text());
}

fn limits(text: &mut String, explanation: &Explanation) {
    if explanation.limits.is_empty() {
        return;
    }
    let mut table = Table::new(&["LIMIT", "KEPT BY", "BUCKET", "COST"]);
    for limit in &explanation.limits {
        table.push([
            limit.name.clone(),
            limit.kept_by.clone(),
            limit.bucket.clone(),
            limit.cost.clone(),
        ]);
    }
    text.push('\n');
    text.push_str(&table.text());
}

fn policies(text: &mut String, explanation: &Explanation) {
    if explanation.policies.is_empty() {
        return;
    }
    let mut table = Table::new(&["POLICY", "ACTION", "LAYER", "ENFORCED AT", "VERDICT"]);
    for policy in &explanation.policies {
        table.push([
            policy.name.clone(),
            policy.action.clone(),
            policy.layer.clone(),
            policy.at.clone(),
            policy.verdict.clone(),
        ]);
    }
    text.push('\n');
    text.push_str(&table.text());
}
