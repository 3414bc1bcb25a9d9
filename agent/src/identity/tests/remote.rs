//! What is taken of an authority's answer, and what is not.

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use rcgen::SanType;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::fetch::Answer;
use crate::identity::remote::{
    RemoteError, RootSource, assemble, chain, percent_decoded, request, with_own,
};
use crate::sentence::sentence;
use crate::signing;

/// A leaf for these names, by an authority.
fn leaf(by: &Plugged, names: &[&str], key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for name in names {
        let uri = (*name).try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
    }
    let issuer = Issuer::from_params(&by.params, &by.key);
    params.signed_by(key, &issuer).unwrap().pem()
}

fn der(authority: &Plugged) -> CertificateDer<'static> {
    authority.certificate.der().clone()
}

fn made(
    answer: &[String],
    key: &KeyPair,
    own: Vec<CertificateDer<'static>>,
) -> Result<Identity, RemoteError> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    assemble(answer, &key, own, &id("a"), SystemTime::now())
}

#[test]
fn headers_of_the_operators_go_with_each_request() {
    let mut said = HeaderMap::new();
    said.insert("x-tenant", HeaderValue::from_static("blue"));
    said.insert("authorization", HeaderValue::from_static("Bearer other"));
    let headers = with_own(said, HeaderValue::from_static("Bearer own"), "c");
    for (name, value) in [
        ("x-tenant", "blue"),
        ("authorization", "Bearer own"),
        ("clusterid", "c"),
    ] {
        let all: Vec<_> = headers.get_all(name).iter().collect();
        assert_eq!(all, [value], "{name}");
    }
}

#[test]
fn an_answer_becomes_an_identity_with_all_roots() {
    let (old, new) = (Plugged::root("old", p256()), Plugged::root("new", p256()));
    let between = old.intermediate("between", p256());
    let name = id("a").to_string();
    let key = p256();
    let direct = leaf(&old, &[&name], &key);
    let below = leaf(&between, &[&name], &key);
    let both = old.pem() + &new.pem();
    for (answer, own, intermediates, roots) in [
        (vec![direct.clone(), old.pem()], vec![], 0, vec![der(&old)]),
        // As istiod has it with a plugged-in intermediate, and with the root in its chain as well.
        (
            vec![below.clone(), between.pem(), old.pem()],
            vec![],
            1,
            vec![der(&old)],
        ),
        (
            vec![below.clone(), between.pem(), old.pem(), old.pem()],
            vec![],
            1,
            vec![der(&old)],
        ),
        (
            vec![below + &between.pem(), old.pem()],
            vec![],
            1,
            vec![der(&old)],
        ),
        // During a rotation: the answer knows both, or each side knows one.
        (
            vec![direct.clone(), both],
            vec![der(&old)],
            0,
            vec![der(&old), der(&new)],
        ),
        (
            vec![direct.clone(), old.pem()],
            vec![der(&new)],
            0,
            vec![der(&old), der(&new)],
        ),
        (
            vec![direct, new.pem()],
            vec![der(&old)],
            0,
            vec![der(&new), der(&old)],
        ),
    ] {
        let identity = made(&answer, &key, own).unwrap();
        assert_eq!(identity.id(), &id("a"));
        assert_eq!(identity.chain().len(), 1 + intermediates);
        let roots: Vec<&[u8]> = roots.iter().map(AsRef::as_ref).collect();
        assert_eq!(identity.roots().collect::<Vec<_>>(), roots);
    }
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_is_not_used() {
    let (root, other) = (
        Plugged::root("root", p256()),
        Plugged::root("other", p256()),
    );
    let name = id("a").to_string();
    let key = p256();
    let good = leaf(&root, &[&name], &key);
    let named = |name: &str| vec![leaf(&root, &[name], &key), root.pem()];
    for (answer, expected) in [
        (vec![], "is no certificate chain"),
        (vec![good.clone()], "is no certificate chain"),
        (vec![String::new(), root.pem()], "is no certificate chain"),
        (
            vec!["-----BEGIN CERTIFICATE-----\n".to_owned(), root.pem()],
            "cannot be read as PEM",
        ),
        (
            vec![good.clone(), String::new()],
            "there is no root certificate",
        ),
        (
            vec![good.clone(), other.pem()],
            "does not lead to its own roots",
        ),
        (
            vec![leaf(&root, &[&name], &p256()), root.pem()],
            "the key does not fit",
        ),
        (
            vec![leaf(&root, &[], &key), root.pem()],
            "holds no SPIFFE ID",
        ),
        (
            named("spiffe://cluster.local/ns/shop/sa/b"),
            "has certified spiffe://cluster.local/ns/shop/sa/b where",
        ),
        (
            named("spiffe://elsewhere/ns/shop/sa/a"),
            "has certified spiffe://elsewhere/ns/shop/sa/a where",
        ),
    ] {
        let error = made(&answer, &key, Vec::new()).unwrap_err();
        let said = sentence(&error);
        assert!(said.contains(expected), "{said}, not {expected}");
    }
}

#[test]
fn a_request_names_the_identity_and_holds_its_own_key() {
    let (key, csr) = request(&id("a")).unwrap();
    let read = rcgen::CertificateSigningRequestParams::from_pem(&csr).unwrap();
    let name = SanType::URI(id("a").to_string().try_into().unwrap());
    assert_eq!(read.params.subject_alt_names, [name]);
    assert_eq!(
        read.params.distinguished_name,
        rcgen::DistinguishedName::new()
    );
    assert_eq!(key.algorithm(), &rcgen::PKCS_ECDSA_P256_SHA256);
    let (another, _) = request(&id("a")).unwrap();
    assert_ne!(key.serialize_der(), another.serialize_der());
}

#[test]
fn refusals_say_what_the_authority_said() {
    let fields = |fields: &[(&'static str, &'static str)]| -> HeaderMap {
        let pairs = fields.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        pairs.collect()
    };
    let answer = |status, headers, trailers| Answer {
        status,
        headers,
        body: signing::framed_chain(vec!["leaf".to_owned()]),
        trailers,
    };
    let (none, ok) = (HeaderMap::new(), StatusCode::OK);
    let good = answer(ok, none.clone(), fields(&[("grpc-status", "0")]));
    assert_eq!(chain(&good).unwrap(), ["leaf"]);
    let refusal = [
        ("grpc-status", "16"),
        ("grpc-message", "no 100%25 %E2%9C%93"),
    ];
    for (headers, trailers, status, expected) in [
        (
            none.clone(),
            fields(&refusal),
            ok,
            "the authority refuses (UNAUTHENTICATED): no 100% ✓",
        ),
        (
            fields(&refusal),
            none.clone(),
            ok,
            "the authority refuses (UNAUTHENTICATED): no 100% ✓",
        ),
        (
            none.clone(),
            none.clone(),
            ok,
            "the authority refuses (gRPC status ``): ",
        ),
        (
            none.clone(),
            none.clone(),
            StatusCode::NOT_FOUND,
            "the authority answers 404 Not Found: is it one that speaks gRPC?",
        ),
    ] {
        let error = chain(&answer(status, headers, trailers)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let mut empty = answer(ok, none, fields(&[("grpc-status", "0")]));
    empty.body = b"".as_slice().into();
    assert!(matches!(chain(&empty), Err(RemoteError::Chain)));
    assert_eq!(percent_decoded("%zz%2"), "%zz%2");
}

#[test]
fn roots_are_a_file_a_text_or_the_systems() {
    let text = "-----BEGIN CERTIFICATE-----\n";
    for (said, expected) in [
        ("SYSTEM", RootSource::System),
        (text, RootSource::Pem(text.to_owned())),
        ("/a/root.pem", RootSource::File("/a/root.pem".into())),
    ] {
        assert_eq!(said.parse(), Ok(expected));
    }
}
