//! The desk, with a resolver of the tests' own.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use userspace_l7::names::{Names, NoAddress};
use userspace_l7::route::named::Name;

use super::lookup::Answered;
use super::{AT_ONCE, Answer, NameDesk, Question, channel};

fn name(text: &str) -> Name {
    Name::asked_for("*.wild.example", &format!("{text}.wild.example")).unwrap()
}

/// A question at the desk, and where its answer comes.
fn ask(
    desk: &mut NameDesk,
    text: &str,
    running: &mut JoinSet<(Name, Answered)>,
) -> oneshot::Receiver<Answer> {
    let (answer, answered) = oneshot::channel();
    let name = name(text);
    desk.take(Question { name, answer }, running);
    answered
}

fn told(text: &str) -> (Name, Answered) {
    let answer: Answer = Ok([Ipv4Addr::new(192, 0, 2, 1).into()].into());
    let holds = Duration::from_secs(60);
    (name(text), Answered { answer, holds })
}

#[tokio::test]
async fn a_name_is_looked_up_once_for_all_who_ask() {
    let (_asked, mut desk) = channel();
    let mut running = JoinSet::new();
    let first = ask(&mut desk, "a", &mut running);
    let second = ask(&mut desk, "a", &mut running);
    // Whoever does not wait any more is nobody's loss.
    drop(ask(&mut desk, "a", &mut running));
    assert_eq!(running.len(), 1);
    let (_, expected) = told("a");
    desk.finish(Ok(told("a")));
    for answered in [first, second, ask(&mut desk, "a", &mut running)] {
        assert_eq!(answered.await.unwrap(), expected.answer);
    }
    assert_eq!(running.len(), 1, "what is known is not asked for");
    assert!(desk.kept.get(&name("a"), Instant::now()).is_some());
}

#[tokio::test]
async fn no_more_names_are_looked_up_at_once_than_the_bound() {
    let (_asked, mut desk) = channel();
    let mut running = JoinSet::new();
    for number in 0..AT_ONCE {
        let _waits = ask(&mut desk, &format!("n{number}"), &mut running);
    }
    let refused = ask(&mut desk, "one-more", &mut running).await.unwrap();
    assert_eq!(refused, Err(NoAddress::Overflow));
    assert_eq!(running.len(), AT_ONCE);
    // Others may still wait for what is under way.
    let mut late = ask(&mut desk, "n0", &mut running);
    assert!(late.try_recv().is_err());
}

#[tokio::test]
async fn whoever_asks_gets_an_answer_even_if_nobody_gives_one() {
    let (asked, desk) = channel();
    let looking = asked.look_up(&name("a"));
    drop(desk);
    assert_eq!(looking.await, Err(NoAddress::Unanswered));
    assert_eq!(asked.look_up(&name("a")).await, Err(NoAddress::Overflow));
}
