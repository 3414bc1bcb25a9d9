//! What clients are told, in the form that they read.

use http::{HeaderMap, StatusCode};

use super::{HttpDenial, OverLimit, Refusal, Rejection, is_grpc, trailers_only};

#[test]
fn grpc_clients_get_a_status_that_they_understand() {
    let refused = Refusal::Denied(HttpDenial::NotAllowed);
    let (plain, grpc) = (refused.answer(false), refused.answer(true));
    assert_eq!(
        (plain.status().as_u16(), grpc.status().as_u16()),
        (403, 200)
    );
    assert_eq!(grpc.headers()["grpc-status"], "7");
    assert_eq!(grpc.headers()["grpc-message"], "RBAC: access denied");
    assert_eq!(
        trailers_only(2, "ü%").headers()["grpc-message"],
        "%C3%BC%25"
    );
}

#[test]
fn refusals_in_others_words_keep_their_form() {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "text/html".parse().unwrap());
    headers.append("set-cookie", "a=1".parse().unwrap());
    headers.append("set-cookie", "b=2".parse().unwrap());
    let body = bytes::Bytes::from_static(b"log in");
    let rejected = Refusal::Rejected(Box::new(Rejection {
        status: StatusCode::UNAUTHORIZED,
        headers: headers.clone(),
        body: body.clone(),
    }));
    let over = Refusal::OverLimit(Box::new(OverLimit { headers, body }));
    for (refusal, status, grpc_status) in [(rejected, 401, "16"), (over, 429, "14")] {
        let (plain, grpc) = (refusal.answer(false), refusal.answer(true));
        assert_eq!(
            (plain.status().as_u16(), grpc.status().as_u16()),
            (status, 200)
        );
        assert_eq!(plain.headers()["content-type"], "text/html");
        assert_eq!(grpc.headers()["content-type"], "application/grpc");
        assert_eq!(grpc.headers()["grpc-status"], grpc_status);
        assert_eq!(grpc.headers()["grpc-message"], "log in");
        for answer in [plain, grpc] {
            assert_eq!(answer.headers().get_all("set-cookie").iter().count(), 2);
        }
    }
}

#[test]
fn grpc_is_known_by_its_content_type() {
    for (kind, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;x=y", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        let headers: HeaderMap = [("content-type".parse().unwrap(), kind.parse().unwrap())]
            .into_iter()
            .collect();
        assert_eq!(is_grpc(&headers), expected, "{kind}");
    }
}
