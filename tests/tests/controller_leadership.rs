//! Several controllers and one API server: one of them writes, another one takes over, and neither writes what it does not
//! lead to.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::kubernetes::{ApiServer, Controller};
use e2e::lab::eventually;
use e2e::shop::{BOUND, LEASE, SUCCEEDED, get, server, service, shop, told};
use serde_json::json;

/// How soon a change has to be told.
const SOON: Duration = Duration::from_secs(10);

/// The lease as the server has it: who holds it, and how often it has changed hands.
fn lease(api: &ApiServer) -> Result<(String, i64)> {
    let lease = get(api, "lease culvert-controller -n culvert-system")?;
    let spec = &lease["spec"];
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    Ok((
        holder.split('_').next().unwrap_or_default().to_owned(),
        spec["leaseTransitions"].as_i64().unwrap_or_default(),
    ))
}

fn leads(controller: &Controller, within: Duration) -> Result<()> {
    eventually("the controller leads", within, || {
        ensure!(controller.leads()?, "it does not");
        Ok(())
    })
}

#[test]
fn one_of_two_writes_and_the_other_takes_over() -> Result<()> {
    let (api, account, lab) = server()?;
    shop(&api, &["one"])?;
    let start = |node: &str| Controller::start(&lab, node, &account, &LEASE);
    let first = start("a")?;
    leads(&first, SUCCEEDED)?;
    let second = start("b")?;
    second.wait_ready()?;
    told(&api, "service one -n shop", BOUND, "True WaypointAccepted")?;
    ensure!(!second.leads()?, "both lead");
    ensure!(second.written()? < 0.5, "the second writes");
    ensure!(lease(&api)?.0 == "a", "{:?}", lease(&api)?);

    // A leader that is held for longer than its lease is none when it goes on, whatever it had begun.
    first.pause()?;
    api.apply(&service("two", "{}"))?;
    told(&api, "service two -n shop", BOUND, "True WaypointAccepted")?;
    leads(&second, SOON)?;
    ensure!(lease(&api)? == ("b".to_owned(), 1), "{:?}", lease(&api)?);
    // There is something to write when it wakes, and only one writes it.
    second.pause()?;
    api.apply(&service("three", "{}"))?;
    first.go_on()?;
    eventually("the first knows that it leads no more", SOON, || {
        let log = first.log()?;
        ensure!(log.contains("writes no more"), "{log}");
        Ok(())
    })?;
    second.go_on()?;
    told(
        &api,
        "service three -n shop",
        BOUND,
        "True WaypointAccepted",
    )?;
    let conflicts = |controller: &Controller| {
        controller.metric(
            "culvert_controller_writes_total",
            &["outcome=\"conflict\"", "what=\"status\""],
        )
    };
    ensure!(
        conflicts(&first)? + conflicts(&second)? < 0.5,
        "they wrote over each other"
    );

    // The leader dies; the other one waits for its lease to end, and writes.
    let is_first = eventually("one of them leads", SUCCEEDED, || {
        match [first.leads()?, second.leads()?] {
            [true, false] => Ok(true),
            [false, true] => Ok(false),
            both => bail!("leaders: {both:?}"),
        }
    })?;
    let (dying, left) = if is_first {
        (first, second)
    } else {
        (second, first)
    };
    let (holder, transitions) = lease(&api)?;
    dying.kill();
    api.apply(&service("four", "{}"))?;
    told(&api, "service four -n shop", BOUND, "True WaypointAccepted")?;
    let (next, more) = lease(&api)?;
    ensure!(next != holder && more == transitions + 1, "{next} {more}");

    // One that ends well gives the lease back: the next need not wait.
    left.stop()?;
    ensure!(lease(&api)?.0.is_empty(), "{:?}", lease(&api)?);
    let third = start("a")?;
    leads(&third, Duration::from_secs(5))?;
    third.stop()
}

#[test]
fn an_outage_of_the_api_server_delays_what_is_written() -> Result<()> {
    let (mut api, account, lab) = server()?;
    shop(&api, &["one"])?;
    let controller = Controller::start(&lab, "a", &account, &LEASE)?;
    told(&api, "service one -n shop", BOUND, "True WaypointAccepted")?;
    api.stop()?;
    eventually("the controller leads no more", SUCCEEDED, || {
        ensure!(!controller.leads()?, "it still does");
        Ok(())
    })?;
    ensure!(
        controller.get(15021, "/healthz/ready")?.status == 200,
        "it knows the last state"
    );
    api.start_again()?;
    api.kubectl(&["delete", "gateway", "w", "-n", "shop"])?;
    let lost = told(
        &api,
        "service one -n shop",
        BOUND,
        "False WaypointIsNotReady",
    )?;
    ensure!(lost["status"]["loadBalancer"] == json!({}), "{lost}");
    ensure!(controller.leads()?, "who else");
    controller.stop()
}
