//! Sessions that stay with an endpoint.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Request;
use crate::model::{SessionCarrier, SessionPersistence};
use crate::route::http::session::Session;

fn rules(carrier: SessionCarrier) -> SessionPersistence {
    SessionPersistence {
        name: "x-session".into(),
        carrier,
        absolute_timeout: Some(Duration::from_secs(3_600)),
        idle_timeout: Some(Duration::from_secs(60)),
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn begun() -> Session {
    Session::begin("10.0.0.1:80".parse().unwrap(), at(0))
}

/// The request that a client sends after a response at `seen`.
fn follow_up(rules: &SessionPersistence, seen: u64) -> Request {
    let (name, value) = begun().field(rules, at(seen));
    let value = value.to_str().unwrap();
    let request = Request::get("/");
    if name == "set-cookie" {
        let pair = value.split(';').next().unwrap();
        request.header("cookie", &format!("other=1; {pair}"))
    } else {
        request.header(&name, value)
    }
}

const CARRIERS: [SessionCarrier; 3] = [
    SessionCarrier::SessionCookie,
    SessionCarrier::PermanentCookie,
    SessionCarrier::Header,
];

#[test]
fn a_client_comes_back_to_its_endpoint_until_the_session_is_over() {
    for carrier in CARRIERS {
        let rules = rules(carrier);
        for (seen, now, expected) in [
            (0, 0, true),
            (0, 60, true),
            (0, 61, false),
            (3_590, 3_600, true),
            (3_590, 3_601, false),
        ] {
            let request = follow_up(&rules, seen);
            let found = Session::of(&rules, &request.head(), at(now));
            assert_eq!(found, expected.then(begun), "{carrier:?} {seen} {now}");
        }
    }
}

#[test]
fn what_is_no_session_is_none() {
    let rules = rules(SessionCarrier::Header);
    for value in ["", "10.0.0.1:80", "!", "AAAA", "MTAuMC4wLjE6ODA", "eHwxfDI"] {
        let request = Request::get("/").header("x-session", value);
        assert_eq!(Session::of(&rules, &request.head(), at(0)), None, "{value}");
    }
    assert_eq!(Session::of(&rules, &Request::get("/").head(), at(0)), None);
}

#[test]
fn a_permanent_cookie_lasts_as_long_as_its_session() {
    let field = |carrier| {
        let (name, value) = begun().field(&rules(carrier), at(600));
        format!("{name}: {}", value.to_str().unwrap())
    };
    let permanent = field(SessionCarrier::PermanentCookie);
    assert!(
        permanent.starts_with("set-cookie: x-session="),
        "{permanent}"
    );
    assert!(
        permanent.ends_with("; Max-Age=3000; Path=/; HttpOnly"),
        "{permanent}"
    );
    let session = field(SessionCarrier::SessionCookie);
    assert!(session.ends_with("; Path=/; HttpOnly") && !session.contains("Max-Age"));
    assert!(field(SessionCarrier::Header).starts_with("x-session: "));
}
