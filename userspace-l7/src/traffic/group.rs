//! The endpoints of one service port, or of a subset there, as this node uses them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::model::{Balance, HashAlgorithm, TrafficPolicy, Warmup, WorkloadUid};
use crate::route::breaker::{InUse, Permit};
use crate::route::outlier::{Outcome, Outliers};
use crate::route::spread::{self, Choice, ConsistentHash, Turn};
use crate::route::{Candidate, Choose, MAX_ATTEMPTS, locality};

/// Tables of consistent hashes that are kept: one for each set of endpoints that clients of this node see, as
/// different zones and ejections make different ones.
const TABLES: usize = 8;

/// What a connection is good for: requests of one worker, from one client, to one endpoint.
type Use = (ThreadId, WorkloadUid, SocketAddr);

/// A group of endpoints.
#[derive(Debug)]
pub struct Group {
    /// Against the limits of the policy.
    pub in_use: InUse,
    began: Instant,
    /// Told when something in use is free again.
    freed: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    turn: u64,
    /// Requests under way, by endpoint; no zeros.
    active: HashMap<SocketAddr, u32>,
    /// When endpoints were first seen, where new ones are spared at first.
    since: HashMap<SocketAddr, Duration>,
    /// Connections by what they are good for; no zeros.
    connections: HashMap<Use, u32>,
    outliers: Outliers,
    /// The one that was used last at the end.
    tables: VecDeque<Kept>,
}

#[derive(Clone, Debug)]
struct Kept {
    algorithm: HashAlgorithm,
    /// Sorted.
    endpoints: Vec<SocketAddr>,
    table: Arc<ConsistentHash>,
}

impl State {
    /// Gives new endpoints less weight. Returns whether there are any.
    fn warm_up(&mut self, warmup: &Warmup, choices: &mut [Choice], now: Duration) -> bool {
        let mut ages = Vec::with_capacity(choices.len());
        for choice in &*choices {
            let since = *self.since.entry(choice.address).or_insert(now);
            ages.push(now.saturating_sub(since));
        }
        let is_warming = ages.iter().any(|age| *age < warmup.duration);
        if is_warming {
            for (choice, age) in choices.iter_mut().zip(ages) {
                choice.weight = spread::warmed(choice.weight, warmup, age);
            }
        }
        is_warming
    }
}

/// What a request asks of the choice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// The endpoint of its session: it comes first if it may be chosen at all.
    pub session: Option<SocketAddr>,
    /// Its hash, where the policy spreads by hashes.
    pub hash: Option<u64>,
}

impl Group {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            in_use: InUse::default(),
            began,
            freed: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// The places of different candidates in the order to try them, without those that are ejected. Empty if
    /// nobody is left.
    pub fn choose(
        &self,
        policy: &TrafficPolicy,
        candidates: &[Candidate],
        wish: Wish,
        choose: &mut Choose<'_>,
    ) -> SmallVec<[usize; MAX_ATTEMPTS]> {
        let now = self.began.elapsed();
        let mut state = self.state();
        if let Some(outliers) = &policy.outliers {
            state.outliers.sweep(outliers, now);
        }
        let all = candidates.len();
        let is_usable = |candidate: &Candidate| {
            let outliers = policy.outliers.as_ref();
            outliers.is_none_or(|policy| {
                let known = &state.outliers;
                known.is_usable(policy, all, &candidate.address)
            })
        };
        let (places, mut choices): (Vec<usize>, Vec<Choice>) = candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| is_usable(candidate))
            .map(|(place, candidate)| {
                let choice = Choice {
                    address: candidate.address,
                    weight: candidate.share,
                    tier: candidate.tier,
                    active: state.active.get(&candidate.address).map_or(0, |busy| *busy),
                };
                (place, choice)
            })
            .unzip();
        let mut balance = &policy.balance;
        if let Some(warmup) = &policy.warmup
            && state.warm_up(warmup, &mut choices, now)
            && *balance == Balance::RoundRobin
        {
            // Hundredths make long turns; while they count, luck is more even.
            balance = &Balance::Random;
        }
        let number = state.turn;
        state.turn = state.turn.wrapping_add(1);
        drop(state);
        let preferred = choices
            .iter_mut()
            .enumerate()
            .find(|(_, choice)| Some(choice.address) == wish.session);
        let preferred = preferred.map(|(place, choice)| {
            choice.weight = 0;
            place
        });
        let all = candidates.iter().map(|candidate| candidate.tier);
        let well = choices.iter().map(|choice| choice.tier);
        let tiers = locality::draw_tiers(all, well, choose);
        let mut chosen: SmallVec<[usize; MAX_ATTEMPTS]> = preferred.into_iter().collect();
        for tier in tiers {
            let others = self.order_in(tier, balance, &mut choices, (number, wish.hash), choose);
            chosen.extend(others.into_iter().filter(|place| Some(*place) != preferred));
            let is_fixed = wish.hash.is_some() && matches!(balance, Balance::ConsistentHash { .. });
            if chosen.len() >= MAX_ATTEMPTS || is_fixed && !chosen.is_empty() {
                break;
            }
        }
        chosen
            .into_iter()
            .take(MAX_ATTEMPTS)
            .filter_map(|place| places.get(place).copied())
            .collect()
    }

    /// The choices of one tier in the order to try them.
    fn order_in(
        &self,
        tier: u8,
        balance: &Balance,
        choices: &mut [Choice],
        (number, hash): (u64, Option<u64>),
        choose: &mut Choose<'_>,
    ) -> SmallVec<[usize; MAX_ATTEMPTS]> {
        let table = match (balance, hash) {
            (Balance::ConsistentHash { algorithm, .. }, Some(hash)) => {
                let inside = choices.iter().filter(|choice| choice.tier == tier);
                let endpoints = inside.map(|choice| choice.address).collect();
                Some((hash, self.table(*algorithm, endpoints)))
            }
            _ => None,
        };
        let turn = Turn {
            number,
            hash: table.as_ref().map(|(hash, table)| (*hash, &**table)),
        };
        if choices.iter().all(|choice| choice.tier == tier) {
            return spread::order(balance, choices, turn, choose);
        }
        let mut inside = choices.to_vec();
        for choice in inside.iter_mut().filter(|choice| choice.tier != tier) {
            choice.weight = 0;
        }
        spread::order(balance, &mut inside, turn, choose)
    }

    /// Counts a request at an endpoint until the guard is dropped.
    pub fn attend(self: &Arc<Self>, endpoint: SocketAddr) -> Attended {
        *self.state().active.entry(endpoint).or_default() += 1;
        Attended {
            group: Arc::clone(self),
            endpoint,
        }
    }

    /// Notes how an attempt at one of `all` endpoints ended. Returns whether the endpoint is ejected for it.
    pub fn ended(
        &self,
        policy: &TrafficPolicy,
        all: usize,
        endpoint: SocketAddr,
        outcome: Outcome,
    ) -> bool {
        let Some(outliers) = &policy.outliers else {
            return false;
        };
        let now = self.began.elapsed();
        let mut state = self.state();
        state.outliers.record(outliers, all, endpoint, outcome, now)
    }

    /// Admits one more connection from a client to an endpoint, unless the limit is reached. The first one is
    /// always let in, at each worker: what the others hold is of no use to it, so it would wait for nothing
    /// (Envoy does so for the first connection to each host).
    pub fn admit_connection(
        self: &Arc<Self>,
        policy: &TrafficPolicy,
        client: &WorkloadUid,
        endpoint: SocketAddr,
    ) -> Option<Place> {
        let good_for = (thread::current().id(), client.clone(), endpoint);
        let mut state = self.state();
        let is_first = !state.connections.contains_key(&good_for);
        let limit = policy.limits.connections.filter(|_| !is_first);
        let permit = self.in_use.connections.admit(limit)?;
        *state.connections.entry(good_for.clone()).or_default() += 1;
        drop(state);
        Some(Place {
            group: Arc::clone(self),
            good_for,
            permit: Some(permit),
        })
    }

    /// Resolves when something that was in use is free again; to be asked for before looking.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Whether there is anything about endpoints to forget.
    pub(super) fn remembers_endpoints(&self) -> bool {
        let state = self.state();
        !state.outliers.is_empty() || !state.since.is_empty()
    }

    /// Forgets endpoints that are no more.
    pub(super) fn retain(&self, exists: impl Fn(&SocketAddr) -> bool) {
        let mut state = self.state();
        state.outliers.retain(&exists);
        state.since.retain(|endpoint, _| exists(endpoint));
    }

    fn table(
        &self,
        algorithm: HashAlgorithm,
        mut endpoints: Vec<SocketAddr>,
    ) -> Arc<ConsistentHash> {
        endpoints.sort_unstable();
        let is_it = |kept: &Kept| kept.algorithm == algorithm && kept.endpoints == endpoints;
        let mut state = self.state();
        if let Some(place) = state.tables.iter().position(is_it)
            && let Some(found) = state.tables.remove(place)
        {
            let table = Arc::clone(&found.table);
            state.tables.push_back(found);
            return table;
        }
        drop(state);
        // Made outside of the lock: a large one takes milliseconds, in which others go on with what there is.
        let table = Arc::new(ConsistentHash::new(algorithm, &endpoints));
        let made = Kept {
            algorithm,
            endpoints,
            table: Arc::clone(&table),
        };
        let mut state = self.state();
        if state.tables.len() >= TABLES {
            drop(state.tables.pop_front());
        }
        state.tables.push_back(made);
        table
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves counts that are right: nothing in here is half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request at an endpoint, until it is dropped.
#[derive(Debug)]
#[must_use = "what is dropped is not counted"]
pub struct Attended {
    group: Arc<Group>,
    endpoint: SocketAddr,
}

impl Drop for Attended {
    fn drop(&mut self) {
        take_one(&mut self.group.state().active, &self.endpoint);
        self.group.freed.notify_waiters();
    }
}

/// A connection to an endpoint, until it is dropped.
#[derive(Debug)]
#[must_use = "what is dropped is not counted"]
pub struct Place {
    group: Arc<Group>,
    good_for: Use,
    permit: Option<Permit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        take_one(&mut self.group.state().connections, &self.good_for);
        drop(self.permit.take());
        self.group.freed.notify_waiters();
    }
}

fn take_one<K: Eq + std::hash::Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            let _zero = counts.remove(key);
        }
    }
}
