//! Identities while they are used: they rotate under live connections, and are proven to whom they have to be.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Agent, eventually};
use e2e::net;
use e2e::net::serve::{Server, echo};
use e2e::scenario::{Pair, echoes};

const PORT: u16 = 7000;
const SECRET: &str = "nobody on the link may read this";

/// Seconds that a certificate lives. The authority backdates it by a tenth, and dates have whole seconds, so the
/// middle of its life is three to four seconds after its issue.
const LIFETIME: &str = "8";
const RENEWED_AFTER: std::ops::RangeInclusive<f64> = 2.0..=6.0;
const SOON: Duration = Duration::from_secs(15);

/// The certificate in use for an identity.
#[derive(Debug, PartialEq, Eq)]
struct Certificate {
    serial: String,
    valid_from: jiff::Timestamp,
    expires: jiff::Timestamp,
}

fn certificate(agent: &Agent, identity: &str) -> Result<Certificate> {
    let dump = agent.config_dump()?;
    let all = dump["certificates"].as_array().context("certificates")?;
    let found = all.iter().find(|one| one["identity"] == identity);
    let leaf = &found.with_context(|| format!("no {identity}"))?["certChain"][0];
    let text = |key: &str| leaf[key].as_str().with_context(|| format!("no {key}"));
    Ok(Certificate {
        serial: text("serialNumber")?.to_owned(),
        valid_from: text("validFrom")?.parse()?,
        expires: text("expirationTime")?.parse()?,
    })
}

#[test]
fn certificates_rotate_at_half_life_and_connections_go_on() -> Result<()> {
    let pair = Pair::with_agent_options(&["--svid-ttl", LIFETIME])?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, PORT, echo)?;
    let to = SocketAddr::new(pair.server.v4(), PORT);
    let held = pair.client.run(|| Ok(net::connect(to)?))?;
    let ends = [
        (pair.lab.agent("a")?, pair.client.identity()),
        (pair.lab.agent("b")?, pair.server.identity()),
    ];
    let first = certificate(pair.lab.agent("a")?, &pair.client.identity())?;
    for rotation in 0..2 {
        for (agent, identity) in &ends {
            let before = certificate(agent, identity)?;
            let after = eventually("the certificate is renewed", SOON, || {
                echoes(&held, "while it rotates")?;
                let now = certificate(agent, identity)?;
                ensure!(now.serial != before.serial, "{now:?}");
                Ok(now)
            })
            .with_context(|| format!("rotation {rotation} of {identity}"))?;
            let age = (after.valid_from - before.valid_from).total(jiff::Unit::Second)?;
            ensure!(
                RENEWED_AFTER.contains(&age) && after.valid_from < before.expires,
                "{before:?} was renewed by {after:?}"
            );
        }
    }
    eventually("the first certificate has expired", SOON, || {
        echoes(
            &held,
            "whatever becomes of the certificate that it began with",
        )?;
        ensure!(jiff::Timestamp::now() > first.expires, "{first:?}");
        Ok(())
    })?;
    echoes(&held, "after its end")?;
    pair.encrypted(SECRET, || {
        pair.client.run(|| echoes(&net::connect(to)?, SECRET))
    })
}
