//! SVIDs from issue to withdrawal.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::timeout;
use userspace_l7::tls::Identities;

use super::*;

fn keeper(directory: PathBuf, lifetime: Duration) -> (SvidKeeper, Arc<Identities>) {
    let identities = Arc::new(Identities::default());
    let keeper = SvidKeeper::open(directory, domain(), lifetime, Arc::clone(&identities)).unwrap();
    (keeper, identities)
}

#[test]
fn wanted_svids_are_issued_renewed_and_withdrawn() {
    let scratch = Scratch::new();
    let (mut keeper, identities) = keeper(scratch.ca(), DAY);
    let statuses = keeper.statuses();
    let now = SystemTime::now();
    let both = HashSet::from([id("a"), id("b")]);
    let next = keeper.keep(&both, now).unwrap();
    let renewal = now + DAY / 2 - Duration::from_secs(60);
    assert!(
        next <= renewal && next > renewal - Duration::from_secs(2),
        "half-life, backdating counted"
    );
    let states: Vec<_> = statuses
        .borrow()
        .iter()
        .map(|status| {
            (
                status.id.clone(),
                status.state.clone(),
                status.identity.is_some(),
            )
        })
        .collect();
    assert_eq!(
        states,
        [
            (id("a"), SvidState::Available, true),
            (id("b"), SvidState::Available, true)
        ]
    );
    let first = identities.get(&id("a")).unwrap();
    assert_eq!(
        keeper.keep(&both, now + DAY / 4),
        Some(next),
        "nothing to do"
    );
    assert_eq!(identities.get(&id("a")).unwrap().serial(), first.serial());
    // The signing time is the keeper's; a certificate of tomorrow is checked against tomorrow.
    let after = keeper.keep(&both, next).unwrap();
    assert!(after > next);
    let second = identities.get(&id("a")).unwrap();
    assert_ne!(second.serial(), first.serial());
    // A session that began with the first one, or begins now, is not affected.
    first.check_trusted(next).unwrap();
    // Connections of a pod that leaves the mesh may still need a tunnel.
    let over = keeper.keep(&HashSet::from([id("b")]), next).unwrap();
    assert!(identities.get(&id("a")).is_some() && over > next);
    assert_eq!(statuses.borrow().len(), 1);
    keeper.keep(&both, next);
    assert_eq!(statuses.borrow().len(), 2, "it is back");
    keeper.keep(&HashSet::from([id("b")]), next);
    keeper.keep(&HashSet::from([id("b")]), over);
    assert!(identities.get(&id("a")).is_none());
    let over = keeper.keep(&HashSet::new(), over).unwrap();
    assert_eq!(keeper.keep(&HashSet::new(), over), None);
    assert!(identities.all().is_empty() && statuses.borrow().is_empty());
}

#[test]
fn a_ca_that_fails_leaves_svids_until_their_end() {
    let scratch = Scratch::new();
    let now = SystemTime::now();
    let end = now + Duration::from_secs(3600);
    let directory = ending(&scratch, end);
    let (mut keeper, identities) = keeper(directory, DAY);
    let wanted = HashSet::from([id("a")]);
    keeper.keep(&wanted, now);
    let state = |keeper: &SvidKeeper| keeper.statuses().borrow()[0].state.clone();
    assert_eq!(state(&keeper), SvidState::Available);
    // The CA is over; so is the SVID, which was cut to the CA's end.
    let next = keeper.keep(&wanted, end).unwrap();
    assert_eq!(next, end + Duration::from_millis(500), "tried again soon");
    assert!(identities.get(&id("a")).is_none());
    let SvidState::Unavailable(why) = state(&keeper) else {
        panic!("{:?}", state(&keeper))
    };
    assert!(why.starts_with("the CA's certificate expired at "), "{why}");
}

#[test]
fn another_ca_on_disk_is_taken_up_if_it_is_usable() {
    let scratch = Scratch::new();
    let (old, new) = (Plugged::root("old", p256()), Plugged::root("new", p256()));
    let directory = scratch.with(&[
        (CERTIFICATE, &old.pem()),
        (KEY, &old.key.serialize_pem()),
        (ROOTS, &old.pem()),
    ]);
    let (mut keeper, identities) = keeper(directory, DAY);
    let wanted = HashSet::from([id("a")]);
    let now = SystemTime::now();
    let round = |keeper: &mut SvidKeeper| {
        keeper.follow_files(now);
        keeper.keep(&wanted, now);
        identities.get(&id("a")).unwrap()
    };
    let first = round(&mut keeper);
    assert_eq!(
        round(&mut keeper).serial(),
        first.serial(),
        "nothing changed"
    );
    // Rotation step one: both roots are trusted.
    scratch.with(&[(ROOTS, &[old.pem(), new.pem()].concat())]);
    let second = round(&mut keeper);
    let both = [
        old.certificate.der().as_ref(),
        new.certificate.der().as_ref(),
    ];
    assert_eq!(second.roots().collect::<Vec<_>>(), both);
    assert_ne!(second.serial(), first.serial());
    // Step two, seen half-way: the certificate is new, the key is not.
    scratch.with(&[(CERTIFICATE, &new.pem())]);
    assert_eq!(
        round(&mut keeper).serial(),
        second.serial(),
        "the old CA stays"
    );
    scratch.with(&[(KEY, &new.key.serialize_pem())]);
    let third = round(&mut keeper);
    assert_ne!(third.serial(), second.serial());
    assert!(trust_each_other(&second, &third) && trust_each_other(&third, &second));
    assert!(
        !trust_each_other(&first, &third),
        "the first one knows the old root only"
    );
    for name in [CERTIFICATE, KEY, ROOTS] {
        fs::remove_file(scratch.ca().join(name)).unwrap();
    }
    assert_eq!(
        round(&mut keeper).serial(),
        third.serial(),
        "an emptied directory changes nothing"
    );
    assert!(files::read(&scratch.ca()).unwrap().is_none());
}

#[tokio::test]
async fn the_task_renews_by_itself_and_follows_what_is_wanted() {
    let scratch = Scratch::new();
    let (keeper, identities) = keeper(scratch.ca(), Duration::from_secs(3));
    let mut statuses = keeper.statuses();
    let (want, wanted) = watch::channel(HashSet::from([id("a")]));
    let task = tokio::spawn(keeper.run(wanted));
    let available = |all: &[SvidStatus], account: &str| {
        all.iter()
            .find(|status| status.id == id(account))
            .and_then(|status| status.identity.clone())
    };
    within(statuses.wait_for(|all| available(all, "a").is_some())).await;
    let first = identities.get(&id("a")).unwrap();
    let is_renewed = |svid: Arc<Identity>| svid.serial() != first.serial();
    within(statuses.wait_for(|all| available(all, "a").is_some_and(is_renewed))).await;
    want.send_replace(HashSet::from([id("b")]));
    within(statuses.wait_for(|all| available(all, "b").is_some() && all.len() == 1)).await;
    drop(want);
    timeout(PATIENCE, task).await.unwrap().unwrap();
    assert!(
        identities.get(&id("b")).is_some(),
        "what is published stays"
    );
}

const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for the statuses to become so.
async fn within(
    wait: impl Future<Output = Result<watch::Ref<'_, Vec<SvidStatus>>, watch::error::RecvError>>,
) {
    drop(timeout(PATIENCE, wait).await.unwrap().unwrap());
}
