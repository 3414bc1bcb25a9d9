//! L5: what the journeys of one worker share. Never leaves its thread, so nothing in it is locked against
//! another; what the workers of a node share is named so.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderValue;
use data_encoding::HEXLOWER;
use tokio::sync::{Semaphore, watch};

use crate::connections::Connections;
use crate::hbone::Pool;
use crate::http;
use crate::key_sets::{KeySets, Keys};
use crate::model::{NamespacedHostname, Side, Snapshot, Workload, WorkloadUid};
use crate::names::Names;
use crate::origination;
use crate::telemetry::{Metrics, RateLimit};
use crate::tls::{Identities, Identity};
use crate::traffic::Traffic;

/// How long a connection of a pod waits for the mesh to know that pod. A pod may connect the moment it
/// starts, before the control plane has heard of it (ztunnel waits as long).
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// Copies of requests that are under way at once, so that a slow mirror costs no more than their memory.
const MIRRORED: usize = 256;

/// Log lines per second of services that do not answer, however many requests they are asked about.
const SILENCES_LOGGED_PER_SECOND: u32 = 1;

/// The shared state of one worker.
pub(crate) struct Hub {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) connections: Rc<Connections>,
    pub(crate) tunnels: Pool,
    /// Connections for requests, most of them through tunnels.
    pub(crate) requests: http::Pool,
    /// What connections to applications that want TLS of their own are made with.
    pub(crate) originations: origination::Settings,
    /// How many copies of requests may be under way for mirrors.
    pub(crate) mirrored: Arc<Semaphore>,
    /// Bounds what is said of services that do not answer the agent's own questions.
    pub(crate) silences: RateLimit,
    /// Keys of tokens.
    pub(crate) keys: Keys,
    /// Who knows where the hosts are that clients name.
    pub(crate) names: Arc<dyn Names>,
    /// The node's, not this worker's: locked against the others.
    pub(crate) traffic: Arc<Traffic>,
    identities: Arc<Identities>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    random: RefCell<Random>,
}

impl Hub {
    pub(crate) fn new(
        snapshot: Arc<Snapshot>,
        identities: Arc<Identities>,
        (key_sets, names): (Arc<KeySets>, Arc<dyn Names>),
        traffic: Arc<Traffic>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            metrics,
            connections: Rc::default(),
            tunnels: Pool::new(),
            requests: http::Pool::default(),
            originations: origination::Settings::default(),
            mirrored: Arc::new(Semaphore::new(MIRRORED)),
            silences: RateLimit::per_second(SILENCES_LOGGED_PER_SECOND),
            keys: Keys::new(key_sets),
            names,
            traffic,
            identities,
            snapshot: watch::Sender::new(snapshot),
            random: RefCell::new(Random::seeded()),
        }
    }

    /// The mesh as it is now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// Takes over a new snapshot and ends the connections that it forbids. Returns how many those are.
    pub(crate) fn publish(&self, snapshot: Arc<Snapshot>) -> usize {
        let refused = self.connections.judge_again(&snapshot);
        self.traffic.retain(&snapshot);
        self.snapshot.send_replace(snapshot);
        refused
    }

    /// Resolves once the mesh is such that `holds`; never, if the worker ends first.
    pub(crate) async fn until(&self, mut holds: impl FnMut(&Snapshot) -> bool) {
        let mut changes = self.snapshot.subscribe();
        // The sender is ours, so it is still there.
        let _held = changes.wait_for(|snapshot| holds(snapshot)).await;
    }

    /// A local pod's workload; waits a while for the mesh to hear of it.
    pub(crate) async fn workload(
        &self,
        uid: &WorkloadUid,
    ) -> Result<Arc<Workload>, UnknownWorkload> {
        if let Some(known) = self.snapshot.borrow().workloads.get(uid) {
            return Ok(Arc::clone(known));
        }
        let mut changes = self.snapshot.subscribe();
        let known = changes.wait_for(|snapshot| snapshot.workloads.contains_key(uid));
        let waited = tokio::time::timeout(WORKLOAD_WAIT, known).await;
        let snapshot = waited.ok().and_then(Result::ok).ok_or(UnknownWorkload)?;
        snapshot
            .workloads
            .get(uid)
            .map(Arc::clone)
            .ok_or(UnknownWorkload)
    }

    /// The identity that proves who a workload is, if it has been issued.
    pub(crate) fn identity(&self, workload: &Workload) -> Option<Arc<Identity>> {
        self.identities.get(&workload.identity())
    }

    /// A name for a request: a random UUID (RFC 9562 §5.4), which tells apart and guards nothing.
    pub(crate) fn request_id(&self) -> HeaderValue {
        let mut random = self.random.borrow_mut();
        let high = random.next() & !0xf000 | 0x4000;
        let low = random.next() & !(0b11 << 62) | 0b10 << 62;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        let mut text = [b'-'; 36];
        let groups = [
            (0..4, 0..8),
            (4..6, 9..13),
            (6..8, 14..18),
            (8..10, 19..23),
            (10..16, 24..36),
        ];
        for (from, to) in groups {
            HEXLOWER.encode_mut(&bytes[from], &mut text[to]);
        }
        // Hexadecimal digits and dashes are a header's value.
        HeaderValue::from_bytes(&text).unwrap_or_else(|_never| HeaderValue::from_static("-"))
    }

    /// A random number.
    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().next()
    }

    /// A uniform choice below `bound`; 0 if there is nothing to choose from.
    pub(crate) fn choose(&self, bound: u32) -> u32 {
        self.random.borrow_mut().below(bound)
    }

    /// Through which of a service's waypoints a new connection goes.
    pub(crate) fn side(&self, service: &NamespacedHostname) -> Side {
        let snapshot = self.snapshot();
        let layer7 = snapshot.services_layer7.get(service);
        layer7.map_or(Side::Primary, |layer7| {
            layer7.choose(|bound| self.choose(bound))
        })
    }
}

/// The mesh does not know the pod that a connection comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timed out waiting for the workload to appear in the mesh")]
pub(crate) struct UnknownWorkload;

/// xorshift64*: spreads connections; guards nothing.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        // The standard library's hasher is seeded by the system and needs no dependency.
        use std::hash::{BuildHasher, Hasher};
        let seed = std::hash::RandomState::new().build_hasher().finish();
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: u32) -> u32 {
        let high = self.next() >> 32;
        // Lemire's reduction: the high half of a 32 x 32 bit product lies below the bound.
        ((high * u64::from(bound)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn choices_are_spread_evenly_and_stay_below_the_bound() {
        let mut random = Random::seeded();
        let mut counts = [0_u32; 3];
        for _draw in 0..30_000 {
            counts[random.below(3) as usize] += 1;
        }
        // 10,000 expected each; five standard deviations are about 410.
        assert!(
            counts.iter().all(|count| (9_590..10_410).contains(count)),
            "{counts:?}"
        );
        assert_eq!(random.below(1), 0);
        assert_eq!(random.below(0), 0);
    }
}
