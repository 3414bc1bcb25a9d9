//! A pod as it is to be captured: where, and at which addresses.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use smallvec::SmallVec;

use super::ledger::Pending;
use super::whereabouts::Place;
use super::{Captured, Office};
use crate::capture::{self, Rules};
use crate::mesh::LocalPod;

impl Office {
    /// The pod as it is to be captured.
    pub(super) fn as_captured(&self, pod: &LocalPod) -> Result<Captured, Pending> {
        let mut pod = pod.clone();
        let mut namespace = None;
        if pod.netns.is_none() {
            let place = self.place(&pod)?;
            let known = place.namespace().map_err(|error| {
                Pending::Hindered(format!("its network namespace cannot be told: {error}"))
            })?;
            namespace = Some(known);
            if let Some(addresses) = self.addresses_there(&pod, place) {
                pod.addresses = addresses;
            }
        }
        if pod.addresses.is_empty() {
            return Err(Pending::Hindered("it has no address yet".to_owned()));
        }
        Ok(Captured { pod, namespace })
    }

    /// The addresses that a pod has in its place, where the API server shows others: none yet, or those of a sandbox that is
    /// gone. One that is another captured pod's stays that one's, whatever this one has given its devices.
    fn addresses_there(&self, pod: &LocalPod, place: &Place) -> Option<SmallVec<[IpAddr; 2]>> {
        let is_there = |address| place.addresses.contains(address);
        if place.addresses.is_empty() || pod.addresses.iter().any(is_there) {
            return None;
        }
        let is_others = |address: &&IpAddr| {
            let mut captured = self.enrolled.values().map(|captured| &captured.pod);
            captured.any(|other| other.uid != pod.uid && other.addresses.contains(*address))
        };
        let own = place.addresses.iter().filter(|address| !is_others(address));
        Some(own.copied().collect())
    }

    /// Where a pod runs that does not say it itself.
    fn place(&self, pod: &LocalPod) -> Result<&Place, Pending> {
        let whereabouts = self.whereabouts.as_ref();
        if let Some(place) = whereabouts.and_then(|known| known.of(&pod.pod_uid)) {
            return Ok(place);
        }
        let hindrance = whereabouts.and_then(|known| known.hindrance(&pod.pod_uid));
        Err(hindrance.map_or(Pending::NotStarted, |why| Pending::Hindered(why.to_owned())))
    }

    /// What capture is told of a pod, and its network namespace if it is open already.
    pub(super) fn spec(&self, pod: &LocalPod) -> Result<(capture::Pod, Option<OwnedFd>), String> {
        let (netns, opened) = if let Some(path) = &pod.netns {
            (path.clone(), None)
        } else {
            let whereabouts = self.whereabouts.as_ref();
            let place = whereabouts.and_then(|known| known.of(&pod.pod_uid));
            let place = place.ok_or("its network namespace is not known")?;
            let opened = place.netns().as_fd().try_clone_to_owned();
            let opened = opened
                .map_err(|error| format!("its network namespace cannot be held open: {error}"))?;
            (place.path.clone(), Some(opened))
        };
        let spec = capture::Pod {
            uid: pod.uid.to_string(),
            netns,
            addresses: pod.addresses.to_vec(),
            dns: pod.dns_capture,
            inbound: !pod.bypass_inbound,
            outbound: true,
            rules: if self.is_under_istio_cni() {
                Rules::IstioCni
            } else {
                Rules::None
            },
        };
        Ok((spec, opened))
    }
}
