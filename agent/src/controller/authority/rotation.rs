//! What becomes of the mesh's root, step by step. Pure.
//!
//! ```text
//!  no Secret ─▶ made ─▶ signs ──(asked for, or near its end)──▶ a next root is published beside it
//!                         ▲                                              │ for as long as any certificate lives
//!                         └── the old one is left out ◀── the next one signs, the old one is trusted still
//! ```
//!
//! So whoever holds a certificate trusts each root before anything is signed with it, and for as long as anything is
//! that was.

use std::collections::BTreeMap;
use std::time::Duration;

use data_encoding::BASE64;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::identity::{CERTIFICATE, CHAIN, CaFiles, KEY, ROOTS};

/// The root that will sign, and the one that did.
const NEXT_CERTIFICATE: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
const PREVIOUS: &str = "previous-cert.pem";
/// On the Secret: another value asks for another root.
const WISH: &str = "culvert.dev/rotate-root";
/// On the Secret: the wish that was granted last.
const GRANTED: &str = "culvert.dev/rotated-root";
/// On the Secret: since when the next root is published, or the previous one signs no more.
const SINCE: &str = "culvert.dev/rotation-since";
/// On the Secret: a controller made what signs, and so minds its age.
const MADE: &str = "culvert.dev/made-by-controller";
/// A root is replaced when this part of its life is left.
const LAST_PART: f64 = 0.2;

/// What the Secret holds. Keys are in it: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// What signs, and all roots that are trusted.
    pub(super) files: CaFiles,
    pub(super) phase: Phase,
    /// Whether what signs was made by a controller. What somebody brought is rotated when it is asked for only.
    pub(super) is_made: bool,
    pub(super) wish: Option<String>,
    pub(super) granted: Option<String>,
}

/// How far a rotation is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is none.
    Settled,
    /// A next root is trusted, and will sign.
    Published {
        certificate: Vec<u8>,
        key: Vec<u8>,
        since: Timestamp,
    },
    /// The previous root is trusted, and signs no more.
    Retiring {
        certificate: Vec<u8>,
        since: Timestamp,
    },
}

/// A certificate that signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signer {
    /// Whether it is its own root; another's is whoever's who brought it.
    pub(super) is_root: bool,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Rest,
    /// The bundle says something else than the Secret does.
    Publish,
    /// A next root is made and published.
    Begin,
    /// It is asked for what whoever brought the CA has to do.
    NotOurs,
    /// The next root signs from now on.
    Promote,
    /// The previous root is trusted no more.
    Retire,
}

/// Decides, where `bundle` is published and certificates live for as long as `overlap` at most.
pub(super) fn step(
    held: &Held,
    signer: Signer,
    bundle: Option<&[u8]>,
    (now, overlap): (Timestamp, Duration),
) -> Step {
    if bundle != Some(&*held.files.roots) {
        return Step::Publish;
    }
    let is_over =
        |since: Timestamp| now.duration_since(since).unsigned_abs() >= overlap && now > since;
    match &held.phase {
        Phase::Published { since, .. } if is_over(*since) => Step::Promote,
        Phase::Retiring { since, .. } if is_over(*since) => Step::Retire,
        Phase::Published { .. } | Phase::Retiring { .. } => Step::Rest,
        Phase::Settled => {
            let is_asked = held.wish.is_some() && held.wish != held.granted;
            let life = signer.not_after.duration_since(signer.not_before);
            let left = signer.not_after.duration_since(now);
            let is_late = held.is_made && left.as_secs_f64() < life.as_secs_f64() * LAST_PART;
            match (is_asked, is_late, signer.is_root) {
                // Whoever brought an authority knows its end.
                (false, false, _) | (false, true, false) => Step::Rest,
                (true, _, false) => Step::NotOurs,
                (_, _, true) => Step::Begin,
            }
        }
    }
}

impl Held {
    /// A Secret of files that a controller has made.
    pub(super) fn made(files: CaFiles) -> Self {
        Self {
            files,
            phase: Phase::Settled,
            is_made: true,
            wish: None,
            granted: None,
        }
    }

    /// Reads a Secret, or says what lacks.
    pub(super) fn read(secret: &Value) -> Result<Self, String> {
        let file = |name: &str| {
            let text = secret["data"][name].as_str()?;
            BASE64.decode(text.as_bytes()).ok()
        };
        let needed = |name: &str| file(name).ok_or_else(|| name.to_owned());
        let note = |name: &str| {
            let notes = secret["metadata"]["annotations"].as_object();
            Some(notes?.get(name)?.as_str()?.to_owned())
        };
        let since = note(SINCE).and_then(|text| text.parse::<Timestamp>().ok());
        // Without a time it has just begun: later is safe, sooner is not.
        let since = since.unwrap_or_else(Timestamp::now);
        let phase = match (file(NEXT_CERTIFICATE), file(NEXT_KEY), file(PREVIOUS)) {
            (Some(certificate), Some(key), _) => Phase::Published {
                certificate,
                key,
                since,
            },
            (_, _, Some(certificate)) => Phase::Retiring { certificate, since },
            _ => Phase::Settled,
        };
        Ok(Self {
            files: CaFiles {
                certificate: needed(CERTIFICATE)?,
                key: needed(KEY)?,
                roots: needed(ROOTS)?,
                chain: file(CHAIN).unwrap_or_default(),
            },
            phase,
            is_made: note(MADE).is_some_and(|made| made == "true"),
            wish: note(WISH),
            granted: note(GRANTED),
        })
    }

    /// Writes it into a Secret, whose other parts stay.
    pub(super) fn write(&self, secret: &mut Value) {
        let mut data = BTreeMap::from([
            (CERTIFICATE, &self.files.certificate),
            (KEY, &self.files.key),
            (ROOTS, &self.files.roots),
            (CHAIN, &self.files.chain),
        ]);
        let since = match &self.phase {
            Phase::Settled => None,
            Phase::Published {
                certificate,
                key,
                since,
            } => {
                data.insert(NEXT_CERTIFICATE, certificate);
                data.insert(NEXT_KEY, key);
                Some(since)
            }
            Phase::Retiring { certificate, since } => {
                data.insert(PREVIOUS, certificate);
                Some(since)
            }
        };
        for name in [NEXT_CERTIFICATE, NEXT_KEY, PREVIOUS] {
            if let Some(all) = secret["data"].as_object_mut() {
                all.remove(name);
            }
        }
        for (name, contents) in data {
            secret["data"][name] = BASE64.encode(contents).into();
        }
        let notes = &mut secret["metadata"]["annotations"];
        if !notes.is_object() {
            *notes = json!({});
        }
        if let Some(notes) = notes.as_object_mut() {
            let mut put = |name: &str, value: Option<String>| match value {
                Some(value) => drop(notes.insert(name.to_owned(), value.into())),
                None => drop(notes.remove(name)),
            };
            put(SINCE, since.map(ToString::to_string));
            put(GRANTED, self.granted.clone());
            put(MADE, self.is_made.then(|| "true".to_owned()));
        }
    }

    /// A next root is trusted besides.
    #[must_use]
    pub(super) fn begun(mut self, next: CaFiles, now: Timestamp) -> Self {
        self.files.roots = joined(&self.files.roots, &next.certificate);
        self.granted.clone_from(&self.wish);
        self.phase = Phase::Published {
            certificate: next.certificate,
            key: next.key,
            since: now,
        };
        self
    }

    /// The next root signs.
    #[must_use]
    pub(super) fn promoted(mut self, now: Timestamp) -> Self {
        if let Phase::Published {
            certificate, key, ..
        } = self.phase
        {
            let previous = std::mem::replace(&mut self.files.certificate, certificate);
            self.files.key = key;
            self.is_made = true;
            // It is its own root: nothing is between.
            self.files.chain.clone_from(&self.files.certificate);
            self.phase = Phase::Retiring {
                certificate: previous,
                since: now,
            };
        }
        self
    }

    /// The previous root is trusted no more.
    #[must_use]
    pub(super) fn retired(mut self) -> Self {
        if let Phase::Retiring { certificate, .. } = &self.phase {
            self.files.roots = without(&self.files.roots, certificate);
            self.phase = Phase::Settled;
        }
        self
    }
}

/// Certificates of two texts, in PEM.
fn joined(roots: &[u8], more: &[u8]) -> Vec<u8> {
    let mut all = roots.trim_ascii_end().to_vec();
    all.push(b'\n');
    all.extend_from_slice(more);
    all
}

/// The certificates of a text less those of another, however either writes them: another's lines may be of another length.
fn without(roots: &[u8], less: &[u8]) -> Vec<u8> {
    const END: &str = "-----END CERTIFICATE-----";
    let read = CertificateDer::pem_slice_iter(less);
    let less: Vec<_> = read.filter_map(Result::ok).collect();
    let text = String::from_utf8_lossy(roots);
    let blocks = text.split_inclusive(END);
    // What cannot be read is none of those that go.
    let kept = blocks.map(str::trim).filter(|block| {
        let read = CertificateDer::from_pem_slice(block.as_bytes());
        block.contains("-----BEGIN ") && !read.is_ok_and(|one| less.contains(&one))
    });
    let mut kept = kept.collect::<Vec<_>>().join("\n");
    kept.push('\n');
    kept.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use userspace_l7::model::TrustDomain;

    use super::*;
    use crate::identity::LocalCa;

    const DAY: Duration = Duration::from_secs(86_400);

    fn files() -> CaFiles {
        let domain = TrustDomain::new("cluster.local").unwrap();
        LocalCa::make(&domain, SystemTime::now()).unwrap()
    }

    fn day(n: i64) -> Timestamp {
        Timestamp::from_second(1_000_000_000 + n * 86_400).unwrap()
    }

    /// A root of a hundred days from day 0 on.
    fn root(is_root: bool) -> Signer {
        Signer {
            is_root,
            not_before: day(0),
            not_after: day(100),
        }
    }

    #[test]
    fn each_step_waits_until_every_certificate_knows_of_the_one_before() {
        let settled = Held::made(files());
        let decide =
            |held: &Held, at: i64| step(held, root(true), Some(&held.files.roots), (day(at), DAY));
        assert_eq!(decide(&settled, 1), Step::Rest);
        let mut wished = settled.clone();
        wished.wish = Some("1".to_owned());
        assert_eq!(decide(&wished, 1), Step::Begin);
        // The end is near.
        assert_eq!(decide(&settled, 79), Step::Rest);
        assert_eq!(decide(&settled, 81), Step::Begin);
        let next = files();
        let begun = wished.begun(next.clone(), day(10));
        let both = [&*settled.files.roots, &*next.roots].concat();
        assert!(begun.files.roots == both && begun.files.key == settled.files.key);
        assert_eq!(
            step(&begun, root(true), None, (day(20), DAY)),
            Step::Publish
        );
        let stale = Some(&*settled.files.roots);
        assert_eq!(
            step(&begun, root(true), stale, (day(20), DAY)),
            Step::Publish
        );
        assert_eq!(decide(&begun, 10), Step::Rest);
        // A clock that goes backwards promotes nothing.
        assert_eq!(decide(&begun, 5), Step::Rest);
        assert_eq!(decide(&begun, 11), Step::Promote);
        let promoted = begun.promoted(day(11));
        assert!(promoted.files.key == next.key && promoted.files.certificate == next.certificate);
        assert!(promoted.files.roots == both);
        assert_eq!(decide(&promoted, 11), Step::Rest);
        assert_eq!(decide(&promoted, 12), Step::Retire);
        let retired = promoted.retired();
        assert!(retired.files == next && retired.phase == Phase::Settled);
        assert_eq!(decide(&retired, 12), Step::Rest, "the wish was granted");
    }

    #[test]
    fn what_somebody_brought_is_rotated_when_asked_for_only() {
        let brought = Held {
            is_made: false,
            ..Held::made(files())
        };
        let decide =
            |held: &Held, at| step(held, root(true), Some(&held.files.roots), (day(at), DAY));
        assert_eq!(decide(&brought, 99), Step::Rest);
        let mut wished = brought;
        wished.wish = Some("1".to_owned());
        assert_eq!(decide(&wished, 1), Step::Begin);
        let begun = wished.begun(files(), day(1));
        assert!(!begun.is_made, "it signs still");
        let settled = begun.promoted(day(2)).retired();
        assert_eq!(decide(&settled, 81), Step::Begin, "this one is ours");
    }

    #[test]
    fn a_root_goes_however_it_is_written() {
        let (old, new) = (files().certificate, files().certificate);
        // Another's line ends and lengths, and a remark.
        let text = String::from_utf8(old.clone()).unwrap();
        let (head, rest) = text.split_once('\n').unwrap();
        let (body, tail) = rest.split_once("-----END").unwrap();
        let body: String = body.split_whitespace().collect();
        let rewritten = format!("# ours\r\n{head}\r\n{body}\r\n-----END{tail}");
        let roots = joined(rewritten.as_bytes(), &new);
        assert!(without(&roots, &old) == new);
        assert!(without(&joined(&old, &new), rewritten.as_bytes()) == new);
        assert!(without(&new, &old) == new);
    }

    #[test]
    fn anothers_authority_is_not_rotated() {
        let mut held = Held::made(files());
        let decide =
            |held: &Held, at| step(held, root(false), Some(&held.files.roots), (day(at), DAY));
        assert_eq!(decide(&held, 99), Step::Rest);
        held.wish = Some("1".to_owned());
        assert_eq!(decide(&held, 1), Step::NotOurs);
    }

    #[test]
    fn a_secret_holds_every_phase() {
        let mut settled = Held::made(files());
        settled.wish = Some("x".to_owned());
        let mut secret = json!({ "metadata": { "annotations": { WISH: "x", "other": "y" } } });
        let begun = settled.clone().begun(files(), day(1));
        let promoted = begun.clone().promoted(day(2));
        let retired = promoted.clone().retired();
        for held in [settled, begun, promoted, retired] {
            held.write(&mut secret);
            assert!(Held::read(&secret).is_ok_and(|read| read == held));
            assert_eq!(secret["metadata"]["annotations"]["other"], "y");
        }
        let keys = secret["data"].as_object().unwrap().keys();
        assert_eq!(keys.collect::<Vec<_>>(), [CERTIFICATE, KEY, CHAIN, ROOTS]);
        assert_eq!(
            Held::read(&json!({ "data": { "ca-cert.pem": "" } }))
                .err()
                .as_deref(),
            Some(KEY)
        );
    }
}
