//! What is called.

use http::Method;

use super::{Request, check, exact, pattern, policy, to};
use crate::model::{
    HttpPolicyAction, OperationMatch, PathNormalization, PathPattern, PathTemplate, StringMatch,
    TemplateSegment,
};
use crate::policy::http::HttpDenial;
use crate::policy::path::InvalidPath;

fn host(value: StringMatch) -> OperationMatch {
    OperationMatch {
        hosts: vec![value],
        ..OperationMatch::default()
    }
}

fn path(value: PathPattern) -> OperationMatch {
    OperationMatch {
        paths: vec![value],
        ..OperationMatch::default()
    }
}

fn text(value: &str) -> OperationMatch {
    path(PathPattern::Text(pattern(value)))
}

fn template(text: &str) -> OperationMatch {
    let segments = text.strip_prefix('/').unwrap().split('/');
    let segment = |text: &str| match text {
        "{*}" => TemplateSegment::One,
        "{**}" => TemplateSegment::Rest,
        literal => TemplateSegment::Literal(literal.into()),
    };
    path(PathPattern::Template(PathTemplate {
        segments: segments.map(segment).collect(),
    }))
}

/// An operation, and the operation that is its negation.
#[track_caller]
fn check_both(one: &OperationMatch, request: &Request, holds: bool) {
    check(&to(one.clone()), request, holds);
    let negated = OperationMatch {
        not_hosts: one.hosts.clone(),
        not_ports: one.ports.clone(),
        not_methods: one.methods.clone(),
        not_paths: one.paths.clone(),
        ..OperationMatch::default()
    };
    check(&to(negated), request, !holds);
}

#[test]
fn hosts_have_no_case_and_carry_the_port_that_the_request_carries() {
    for (wanted, authority, holds) in [
        ("echo.app", "echo.app", true),
        ("Echo.App", "eCHO.aPP", true),
        ("echo.app", "echo.app:80", false),
        ("echo.app:80", "echo.app:80", true),
        ("echo.app:*", "echo.app:80", true),
        ("echo.app:*", "echo.app", false),
        ("echo*", "ECHO.app", true),
        ("*.APP", "echo.app", true),
        ("*.app", "echo.app:80", false),
        ("*.app", "app", false),
        ("echo.app", "echo.app.", false),
        ("echo.app", "xecho.app", false),
        ("*", "anything", true),
        ("*", "", false),
        ("é*", "e", false),
    ] {
        let request = Request::get("/").authority(authority);
        check_both(&host(pattern(wanted)), &request, holds);
    }
}

#[test]
fn ports_are_those_that_were_called() {
    for (port, holds) in [(80, true), (8080, false)] {
        let ports = OperationMatch {
            ports: vec![port],
            ..OperationMatch::default()
        };
        check_both(&ports, &Request::get("/"), holds);
    }
}

#[test]
fn methods_have_case() {
    for (wanted, method, holds) in [
        ("GET", Method::GET, true),
        ("get", Method::GET, false),
        ("GET", Method::POST, false),
        ("P*", Method::PATCH, true),
        ("*", Method::DELETE, true),
        ("GET", Method::from_bytes(b"get").unwrap(), false),
    ] {
        let methods = OperationMatch {
            methods: vec![pattern(wanted)],
            ..OperationMatch::default()
        };
        check_both(&methods, &Request::get("/").method(method), holds);
    }
}

#[test]
fn paths_match_normalized_and_without_the_query() {
    for (wanted, sent, holds) in [
        ("/admin", "/admin", true),
        ("/admin", "/Admin", false),
        ("/admin", "/admin/", false),
        ("/admin", "/x/../admin", true),
        ("/admin", "/%61dmin", true),
        ("/admin", "\\admin", false),
        ("/admin", "/x\\..\\admin", true),
        ("/admin", "/./admin", true),
        ("/admin*", "/administrator", true),
        ("/admin/*", "/admin", false),
        ("/admin/*", "/admin/x", true),
        ("/admin/*", "/admin/../public", false),
        ("/public/*", "/public/../admin", false),
        ("/public/*", "/public/%2e%2e/admin", false),
        ("*/query", "/admin", false),
        ("*.jpg", "/a/b.jpg", true),
        ("*.jpg", "/a/b.jpg/", false),
        ("*", "/", true),
        ("/pkg.Service/Method", "/pkg.Service/Method", true),
        // Istio's default leaves double slashes alone; `MERGE_SLASHES` is for whoever relies on them.
        ("/admin", "//admin", false),
    ] {
        let request = Request::get(sent);
        if sent.starts_with('/') {
            check_both(&text(wanted), &request, holds);
        } else {
            let denial = request.decide(&[policy("p", HttpPolicyAction::Allow, vec![])]);
            assert_eq!(
                denial,
                Err(HttpDenial::InvalidPath(InvalidPath::NotAbsolute))
            );
        }
    }
}

#[test]
fn templates_take_one_segment_or_the_rest() {
    for (wanted, sent, holds) in [
        ("/foo/{*}", "/foo/bar", true),
        ("/foo/{*}", "/foo/", false),
        ("/foo/{*}", "/foo", false),
        ("/foo/{*}", "/foo/bar/baz", false),
        ("/foo/{*}/baz", "/foo/bar/baz", true),
        ("/foo/{*}/baz", "/foo//baz", false),
        ("/{*}/{*}", "/a/b", true),
        ("/{*}/{*}", "/a", false),
        ("/foo/{**}", "/foo/", true),
        ("/foo/{**}", "/foo/bar/baz", true),
        ("/foo/{**}", "/foo", false),
        ("/foo/{**}", "/foobar", false),
        ("/foo/{**}", "/x/foo/bar", false),
        ("/{**}", "/", true),
        ("/{**}", "/a/b/c", true),
        ("/foo/{**}/bar", "/foo/x/bar", true),
        ("/foo/{**}/bar", "/foo/x/y/bar", true),
        ("/foo/{**}/bar", "/foo//bar", true),
        ("/foo/{**}/bar", "/foo/bar", false),
        ("/foo/{*}/x/{**}", "/foo/a/x/b/c", true),
        ("/foo/{*}/x/{**}", "/foo/a/y/b/c", false),
        ("/foo/{**}", "/foo/../admin", false),
        ("/FOO/{*}", "/foo/bar", false),
    ] {
        check_both(&template(wanted), &Request::get(sent), holds);
    }
    // Only one `{**}` may stand in a template: two match nothing rather than anything.
    check_both(&template("/{**}/{**}"), &Request::get("/a/b"), false);
}

#[test]
fn the_meshs_normalization_decides_what_a_path_is() {
    for (how, sent, holds) in [
        (PathNormalization::None, "/x/../admin", false),
        (PathNormalization::Base, "/x/../admin", true),
        (PathNormalization::Base, "//admin", false),
        (PathNormalization::MergeSlashes, "//admin", true),
        (PathNormalization::MergeSlashes, "/%2fadmin", false),
        (PathNormalization::DecodeAndMergeSlashes, "/%2fadmin", true),
        (
            PathNormalization::DecodeAndMergeSlashes,
            "/x%2f..%2fadmin",
            true,
        ),
        (
            PathNormalization::DecodeAndMergeSlashes,
            "/x/..%5Cadmin",
            true,
        ),
    ] {
        let mut request = Request::get(sent);
        request.normalization = how;
        check_both(&text("/admin"), &request, holds);
    }
}

#[test]
fn a_path_that_could_mean_another_is_refused_where_paths_are_judged() {
    let public = policy("p", HttpPolicyAction::Allow, vec![to(text("/public/*"))]);
    let anyone = policy(
        "q",
        HttpPolicyAction::Allow,
        vec![to(OperationMatch::default())],
    );
    for sent in [
        "/public/..%2fadmin",
        "/public/..;/admin",
        "/public/%252e%252e/admin",
        "/public%2f..%2f..%2fadmin",
    ] {
        let request = Request::get(sent);
        assert_eq!(
            request.decide(std::slice::from_ref(&public)),
            Err(HttpDenial::AmbiguousPath),
            "{sent}"
        );
        assert_eq!(
            request.decide(std::slice::from_ref(&anyone)),
            Ok(()),
            "{sent}"
        );
    }
}

#[test]
fn a_connect_has_no_path() {
    let mut request = Request::get("").method(Method::CONNECT);
    check_both(&text("*"), &request, false);
    check_both(&template("/{**}"), &request, false);
    request.method = Method::GET;
    let denied = request.decide(&[]);
    assert_eq!(
        denied,
        Err(HttpDenial::InvalidPath(InvalidPath::NotAbsolute))
    );
}

#[test]
fn values_are_ored_fields_anded_and_operations_ored() {
    let get_admin = OperationMatch {
        methods: vec![exact("POST"), exact("GET")],
        ..text("/admin")
    };
    check(&to(get_admin.clone()), &Request::get("/admin"), true);
    check(&to(get_admin.clone()), &Request::get("/other"), false);
    let put = Request::get("/admin").method(Method::PUT);
    check(&to(get_admin.clone()), &put, false);
    let mut either = to(text("/other"));
    either.to.push(get_admin);
    check(&either, &Request::get("/admin"), true);
    check(&either, &put, false);
    let except = OperationMatch {
        not_paths: vec![PathPattern::Text(pattern("/admin/secret*"))],
        ..text("/admin*")
    };
    check(&to(except.clone()), &Request::get("/admin/x"), true);
    check(&to(except), &Request::get("/admin/x/../secret"), false);
}
