//! The directory: made once, read as it is, refused with a sentence.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};

use rcgen::{BasicConstraints, IsCa, date_time_ymd};

use super::*;
use crate::sentence::sentence;

#[test]
fn a_new_ca_is_made_once_and_its_key_is_private() {
    let scratch = Scratch::new();
    let first = open(&scratch.ca()).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(scratch.ca()), 0o700);
    assert_eq!(mode(scratch.ca().join(KEY)), 0o600);
    let mut names: Vec<_> = fs::read_dir(scratch.ca())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    assert_eq!(names, [CERTIFICATE, KEY, CHAIN, ROOTS]);
    let second = open(&scratch.ca()).unwrap();
    assert!(trust_each_other(&issue(&first, "a"), &issue(&second, "b")));
    assert!(!format!("{first:?}").contains("PRIVATE"));
}

#[test]
fn agents_that_start_together_share_one_ca() {
    for _ in 0..20 {
        let scratch = Scratch::new();
        let together = Arc::new(Barrier::new(6));
        let agents: Vec<_> = (0..6)
            .map(|_| {
                let (directory, together) = (scratch.ca(), Arc::clone(&together));
                std::thread::spawn(move || {
                    together.wait();
                    let ca = open(&directory).unwrap();
                    let svid = issue(&ca, "a");
                    svid.roots().map(<[u8]>::to_vec).collect::<Vec<_>>()
                })
            })
            .collect();
        let roots: Vec<_> = agents
            .into_iter()
            .map(|agent| agent.join().unwrap())
            .collect();
        assert!(roots.iter().all(|root| *root == roots[0]));
    }
}

#[test]
fn a_set_whose_maker_died_is_completed_or_made_anew() {
    let names = [KEY, CHAIN, ROOTS, CERTIFICATE];
    for moved in 0..=names.len() {
        let scratch = Scratch::new();
        let made = open(&scratch.ca()).unwrap();
        // As it is after `moved` of the moves.
        let stage = scratch.ca().join(".culvert-new");
        fs::create_dir(&stage).unwrap();
        for name in &names[moved..] {
            fs::rename(scratch.ca().join(name), stage.join(name)).unwrap();
        }
        let found = open(&scratch.ca()).unwrap();
        assert!(
            trust_each_other(&issue(&made, "a"), &issue(&found, "b")),
            "after {moved}"
        );
        // A complete set is used without a look at the stage, which may be on a read-only mount.
        assert_eq!(stage.exists(), moved == names.len());
    }
    let scratch = Scratch::new();
    let unfinished = scratch.with(&[]).join(".culvert-unfinished");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join(KEY), "half a k").unwrap();
    open(&scratch.ca()).unwrap();
    assert!(!unfinished.exists());
}

/// Opens a directory with these files, which fails with a sentence that begins so.
#[track_caller]
fn check(files: &[(&str, &str)], expected: &str) {
    let scratch = Scratch::new();
    let directory = scratch.with(files);
    let error = open(&directory).unwrap_err();
    let text = sentence(&error).replace(directory.to_str().unwrap(), "DIR");
    assert!(text.starts_with(expected), "{text}");
    let mut left: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".culvert-lock")
        .collect();
    let mut given: Vec<_> = files.iter().map(|(name, _)| (*name).to_owned()).collect();
    left.sort();
    given.sort();
    assert_eq!(left, given, "nothing is added to what is not ours");
}

/// The same for a complete set.
#[track_caller]
fn check_set([certificate, key, roots, chain]: [&str; 4], expected: &str) {
    check(
        &[
            (CERTIFICATE, certificate),
            (KEY, key),
            (ROOTS, roots),
            (CHAIN, chain),
        ],
        expected,
    );
}

#[test]
fn half_a_set_is_refused_in_one_sentence() {
    let ca = Plugged::root("root", p256());
    let (certificate, key) = (ca.pem(), ca.key.serialize_pem());
    check(
        &[(KEY, &key)],
        "DIR holds ca-key.pem but not ca-cert.pem and root-cert.pem: add what is missing, or \
         empty the directory to have a new CA made",
    );
    check(
        &[
            (CERTIFICATE, &certificate),
            (ROOTS, &certificate),
            (CHAIN, &certificate),
        ],
        "DIR holds ca-cert.pem and root-cert.pem and cert-chain.pem but not ca-key.pem: ",
    );
    check(
        &[(CHAIN, &certificate)],
        "DIR holds cert-chain.pem but not ca-cert.pem and ca-key.pem and root-cert.pem: ",
    );
}

#[test]
fn files_with_other_contents_are_named() {
    let ca = Plugged::root("root", p256());
    let (certificate, key) = (ca.pem(), ca.key.serialize_pem());
    let (cert, key) = (certificate.as_str(), key.as_str());
    let no_certificate = |name| format!("DIR/{name} holds no usable PEM certificate: ");
    check_set(["", key, cert, ""], &no_certificate(CERTIFICATE));
    check_set([key, key, cert, ""], &no_certificate(CERTIFICATE));
    check_set([cert, key, "", ""], &no_certificate(ROOTS));
    check_set([cert, key, cert, "junk"], &no_certificate(CHAIN));
    check_set(
        [cert, "junk", cert, ""],
        "DIR/ca-key.pem holds no usable PEM private key: ",
    );
}

#[test]
fn sets_that_do_not_fit_together_are_refused() {
    let ca = Plugged::root("root", p256());
    let (certificate, key) = (ca.pem(), ca.key.serialize_pem());
    let (cert, key) = (certificate.as_str(), key.as_str());
    let stranger = Plugged::root("stranger", p256());
    check_set(
        [cert, &stranger.key.serialize_pem(), cert, ""],
        "ca-cert.pem and ca-key.pem in DIR do not belong together: put a matching pair there",
    );
    check_set(
        [cert, key, &stranger.pem(), ""],
        "certificates signed by ca-cert.pem in DIR are not valid under root-cert.pem: the issued \
         certificate cannot be used: the certificate chain does not lead to its own roots: ",
    );
    let leaf = ca.below(Plugged::params("leaf", IsCa::NoCa), p256());
    check_set(
        [&leaf.pem(), &leaf.key.serialize_pem(), cert, ""],
        "DIR/ca-cert.pem is not a CA certificate: ",
    );
    let mut expired = Plugged::params("old", IsCa::Ca(BasicConstraints::Unconstrained));
    expired.not_after = date_time_ymd(2001, 1, 1);
    let expired = ca.below(expired, p256());
    check_set(
        [&expired.pem(), &expired.key.serialize_pem(), cert, ""],
        "certificates signed by ca-cert.pem in DIR are not valid under root-cert.pem: the CA's \
         certificate expired at 2001-01-01T00:00:00Z: replace it",
    );
}

#[test]
fn a_directory_that_cannot_be_read_is_named() {
    let scratch = Scratch::new();
    let blocked = scratch.0.join("file");
    fs::write(&blocked, "").unwrap();
    let error = open(&blocked.join("ca")).unwrap_err();
    assert!(
        matches!(error, LocalCaError::Files(CaFilesError::Read { .. })),
        "{error:?}"
    );
}
