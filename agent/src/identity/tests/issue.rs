//! What is issued, by our own CA and by plugged ones.

use std::fs;
use std::time::Duration;

use rcgen::KeyPair;
use x509_parser::prelude::*;

use super::*;

#[test]
fn an_svid_is_what_istio_issues() {
    let scratch = Scratch::new();
    let ca = open(&scratch.ca()).unwrap();
    let now = SystemTime::now();
    let svid = ca.issue(&id("reviews"), now, DAY).unwrap();
    assert_eq!(svid.id(), &id("reviews"));
    let chain: Vec<_> = svid.chain().collect();
    assert_eq!(chain.len(), 1, "the root is not sent");
    let (_, leaf) = X509Certificate::from_der(chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(
        names.value.general_names,
        [GeneralName::URI(
            "spiffe://cluster.local/ns/shop/sa/reviews"
        )]
    );
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any);
    assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
    assert!(!leaf.is_ca());
    let curve = leaf
        .public_key()
        .algorithm
        .parameters
        .as_ref()
        .unwrap()
        .as_oid()
        .unwrap();
    assert_eq!(curve.to_id_string(), "1.2.840.10045.3.1.7", "P-256");
    assert_eq!(svid.serial(), leaf.tbs_certificate.serial.to_string());
    let until = svid.not_after().duration_since(now).unwrap();
    assert!(until <= DAY && until + Duration::from_secs(2) > DAY);
    assert!(svid.not_before() < now);
    assert_eq!(svid.roots().len(), 1);
    assert_ne!(
        svid.serial(),
        issue(&ca, "reviews").serial(),
        "a new key each time"
    );
}

#[test]
fn plugged_cas_of_every_kind_are_used_as_they_are() {
    let p384 = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for (root_key, key) in [
        (p256(), p256()),
        (rsa(), rsa()),
        (p384(), rsa()),
        (rsa(), p384()),
    ] {
        let root = Plugged::root("root", root_key);
        let upper = root.intermediate("upper", p256());
        let ca = upper.intermediate("node", key);
        let scratch = Scratch::new();
        let directory = scratch.with(&[
            (CERTIFICATE, &ca.pem()),
            (KEY, &ca.key.serialize_pem()),
            (ROOTS, &root.pem()),
            (CHAIN, &[ca.pem(), upper.pem(), root.pem()].concat()),
        ]);
        let svid = issue(&open(&directory).unwrap(), "a");
        let expected = [
            ca.certificate.der().as_ref(),
            upper.certificate.der().as_ref(),
        ];
        assert_eq!(svid.chain().skip(1).collect::<Vec<_>>(), expected);
        assert_eq!(
            svid.roots().collect::<Vec<_>>(),
            [root.certificate.der().as_ref()]
        );
        // Another node with an intermediate of its own, and no chain file.
        let other = root.intermediate("other node", p256());
        let scratch = Scratch::new();
        let directory = scratch.with(&[
            (CERTIFICATE, &other.pem()),
            (KEY, &other.key.serialize_pem()),
            (ROOTS, &root.pem()),
        ]);
        let peer = issue(&open(&directory).unwrap(), "b");
        assert!(trust_each_other(&svid, &peer));
        assert!(trust_each_other(&peer, &svid));
        assert_eq!(
            fs::read_dir(directory).unwrap().count(),
            3,
            "nothing was added"
        );
    }
}

#[test]
fn keys_in_the_old_rsa_form_are_read() {
    let ca = Plugged::root("root", rsa());
    // PKCS #8 wraps PKCS #1 behind 26 bytes of algorithm and lengths.
    let pkcs1 = rustls::pki_types::PrivatePkcs1KeyDer::from(ca.key.serialize_der()[26..].to_vec());
    let encoded = ca.key.serialize_pem();
    let body = data_encoding::BASE64.encode(pkcs1.secret_pkcs1_der());
    assert!(encoded.contains("BEGIN PRIVATE KEY"));
    let old = format!("-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----\n");
    let scratch = Scratch::new();
    let directory = scratch.with(&[(CERTIFICATE, &ca.pem()), (KEY, &old), (ROOTS, &ca.pem())]);
    let ca = open(&directory).unwrap();
    assert!(trust_each_other(&issue(&ca, "a"), &issue(&ca, "b")));
}

#[test]
fn no_svid_outlives_its_ca() {
    let scratch = Scratch::new();
    let end = SystemTime::now() + Duration::from_secs(3600);
    let ca = open(&ending(&scratch, end)).unwrap();
    assert!(issue(&ca, "a").not_after() <= end);
    let late = ca.issue(&id("a"), end + Duration::from_secs(1), DAY);
    assert!(matches!(late, Err(IssueError::Expired(_))));
}
