//! A server that stalls cannot hide it: latencies count from when requests were meant to be sent.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{HOST, plan};
use crate::bench::plan::{Extent, Loop, Protocol};
use crate::bench::run;
use crate::bench::schedule::{Schedule, Ticket};
use crate::bench::tally::{Moved, Sample, Tally};
use crate::bench::wire::RequestHead;

const MS: Duration = Duration::from_millis(1);

/// Connections and a server that does nothing from one time to another, without waiting: time is only counted.
fn simulate(schedule: &Schedule, start: Instant, connections: usize, stall: (u32, u32)) -> Tally {
    let service = MS / 2;
    let (silent, speaks) = (start + stall.0 * MS, start + stall.1 * MS);
    let mut tally = Tally::default();
    let mut free = vec![start; connections];
    loop {
        // The one that has been free for longest takes the next ticket.
        let now = free.iter_mut().min().unwrap();
        let (intended, sent) = match schedule.take(*now) {
            Some(Ticket::Now) => (*now, *now),
            Some(Ticket::At(intended)) => (intended, intended.max(*now)),
            Some(Ticket::Missed(intended)) => {
                tally.miss(intended, *now, schedule.window());
                continue;
            }
            None => return tally,
        };
        let is_silent = sent >= silent && sent < speaks;
        let done = if is_silent {
            speaks + service
        } else {
            sent + service
        };
        let sample = Sample {
            intended,
            sent,
            done,
            outcome: Ok(Moved::default()),
        };
        tally.record(&sample, schedule.window());
        *now = done;
    }
}

fn second() -> Extent {
    Extent::Time {
        warmup: Duration::ZERO,
        duration: 1000 * MS,
    }
}

proptest! {
    /// Of the requests that were due in a stall of S ms, those of its first ms waited for all of it: of a run of 1000 ms
    /// one in a hundred waits for at least S - 10 ms, whatever the rate and the number of connections are.
    #[test]
    fn a_stall_is_in_p99(rate in 200u32..5000, connections in 1usize..64, begin in 0u32..700, length in 20u32..300) {
        let start = Instant::now();
        let schedule = Schedule::new(start, Loop::Open { rate: rate.into() }, second());
        let tally = simulate(&schedule, start, connections, (begin, begin + length));
        let p99 = tally.latency.percentile(99.0);
        // The gap between two requests, and the histogram's three digits.
        let least = (length * MS).saturating_sub(10 * MS + Duration::from_secs(2) / rate);
        prop_assert!(p99 >= least.mul_f64(0.99), "{:?} < {:?}", p99, least);
        let all = tally.latency.filled().unwrap().len();
        prop_assert_eq!(all, u64::from(rate), "every request that was due is counted");
        prop_assert_eq!(all, tally.succeeded + tally.unsent);
    }

    /// A stall that lasts until the end is in p99 too, though most of its requests are never sent.
    #[test]
    fn a_stall_that_does_not_end_is_in_p99(rate in 200u32..5000, connections in 1usize..64, begin in 0u32..900) {
        let start = Instant::now();
        let schedule = Schedule::new(start, Loop::Open { rate: rate.into() }, second());
        let tally = simulate(&schedule, start, connections, (begin, 1_000_000));
        let least = ((1000 - begin) * MS).saturating_sub(10 * MS + Duration::from_secs(2) / rate);
        prop_assert!(tally.latency.percentile(99.0) >= least.mul_f64(0.99));
        prop_assert_eq!(tally.latency.filled().unwrap().len(), u64::from(rate));
    }
}

#[test]
fn a_closed_loop_does_not_see_what_it_did_not_send() {
    let start = Instant::now();
    let stall = (300, 600);
    let closed = Schedule::new(start, Loop::Closed, second());
    let p99 = simulate(&closed, start, 4, stall).latency.percentile(99.0);
    assert!(p99 < MS, "{p99:?}: that is why there is an open loop");
    let open = Schedule::new(start, Loop::Open { rate: 1000.0 }, second());
    let p99 = simulate(&open, start, 4, stall).latency.percentile(99.0);
    assert!(p99 > 280 * MS, "{p99:?}");
}

/// Answers plain requests at once, except from one time to another.
fn answer(mut stream: TcpStream, silent: Instant, speaks: Instant) {
    let mut head = [0; RequestHead::LENGTH];
    while stream.read_exact(&mut head).is_ok() {
        let head = RequestHead::decode(head);
        let mut payload = vec![0; head.payload as usize];
        if stream.read_exact(&mut payload).is_err() {
            return;
        }
        let now = Instant::now();
        if now >= silent {
            // A stall is what is tested here.
            thread::sleep(speaks.saturating_duration_since(now));
        }
        if stream.write_all(&vec![0; head.response as usize]).is_err() {
            return;
        }
    }
}

#[test]
fn a_real_stall_shows_in_latency_and_not_in_service_time() {
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let mut plan = plan(Protocol::Tcp, listener.local_addr().unwrap().port());
    (plan.payload, plan.response) = (10, 10);
    plan.connections = NonZeroUsize::new(4).unwrap();
    plan.pace = Loop::Open { rate: 1000.0 };
    plan.extent = second();
    let silent = Instant::now() + 300 * MS;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || answer(stream, silent, silent + 300 * MS));
        }
    });
    let report = run(&plan, |_progress| {}).unwrap();
    let latency = report.latency_us.as_ref().unwrap();
    let service = report.service_us.as_ref().unwrap();
    assert!(latency.p99 > 250e3, "{}", report.text());
    // Four of a thousand saw it: one on each connection.
    assert!(service.p99 < latency.p99 / 2.0, "{}", report.text());
    assert_eq!(latency.count, 1000, "{}", report.text());
}
