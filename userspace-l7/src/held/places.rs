//! Who is held back, and who is let in to be: places are few, and no pod can take them from the others.

use std::net::SocketAddr;

use foldhash::HashMap;

use super::Held;
use crate::pod::Opening;

/// Connections that a worker holds at once. Who comes beyond sends its SYN again a second later.
const MOST: usize = 16_384;

/// A connection, by its pod's network namespace, the application's address and the one that it dialled.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) netns: u64,
    pub(super) source: SocketAddr,
    pub(super) dialled: SocketAddr,
}

impl Key {
    pub(super) fn of(opening: &Opening) -> Self {
        Self {
            netns: opening.netns,
            source: opening.source,
            dialled: opening.dialled,
        }
    }
}

/// Held connections.
pub(super) struct Places<T = Held> {
    held: HashMap<Key, T>,
    /// How many each pod has; none that has none.
    of_pods: HashMap<u64, usize>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self {
            held: HashMap::default(),
            of_pods: HashMap::default(),
        }
    }
}

impl<T> Places<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&T> {
        self.held.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut T> {
        self.held.get_mut(key)
    }

    /// Whether there is a place for one more of this pod: it may have as many as are free.
    ///
    /// So half of the places are left to the others by one pod that never gets an answer, a third by two, and whoever has
    /// few always finds one (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
    pub(super) fn has_room_for(&self, netns: u64) -> bool {
        let own = self.of_pods.get(&netns).copied().unwrap_or_default();
        own < MOST.saturating_sub(self.held.len())
    }

    /// Takes a place, or the one that is taken already.
    pub(super) fn insert(&mut self, key: Key, held: T) {
        if self.held.insert(key, held).is_none() {
            *self.of_pods.entry(key.netns).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<T> {
        let removed = self.held.remove(key)?;
        self.leave(key.netns);
        Some(removed)
    }

    /// Takes out what is to go.
    pub(super) fn remove_those(&mut self, mut which: impl FnMut(&Key, &T) -> bool) -> Vec<T> {
        let removed = self.held.extract_if(|key, held| which(key, held));
        let removed: Vec<_> = removed.collect();
        for (key, _) in &removed {
            self.leave(key.netns);
        }
        removed.into_iter().map(|(_, held)| held).collect()
    }

    fn leave(&mut self, netns: u64) {
        if let Some(own) = self.of_pods.get_mut(&netns) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                self.of_pods.remove(&netns);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn key(netns: u64, number: usize) -> Key {
        let address = Ipv4Addr::from_bits(u32::try_from(number).unwrap());
        Key {
            netns,
            source: SocketAddr::new(IpAddr::V4(address), 1),
            dialled: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 80),
        }
    }

    /// Takes places as long as there are any; gives how many.
    fn take_all(places: &mut Places<()>, netns: u64) -> usize {
        let mut taken = 0;
        while places.has_room_for(netns) {
            places.insert(key(netns, taken), ());
            taken += 1;
        }
        taken
    }

    #[test]
    fn pod_that_takes_all_it_can_leaves_places_to_others() {
        let mut places = Places::default();
        assert_eq!(take_all(&mut places, 1), MOST / 2);
        assert_eq!(take_all(&mut places, 2), MOST / 4);
        assert_eq!(take_all(&mut places, 3), MOST / 8);
        assert!(places.has_room_for(4));
        // Who has more than is free now waits for others to be answered.
        assert!(!places.has_room_for(1));
    }

    #[test]
    fn places_that_are_left_are_free() {
        let mut places = Places::default();
        let taken = take_all(&mut places, 1);
        places.insert(key(1, 0), ());
        assert!(places.remove(&key(1, 0)).is_some());
        assert!(places.remove(&key(1, 0)).is_none());
        assert!(places.has_room_for(1));
        assert_eq!(
            places.remove_those(|key, ()| key.netns == 1).len(),
            taken - 1
        );
        assert!(places.is_empty() && places.of_pods.is_empty());
        assert_eq!(take_all(&mut places, 2), MOST / 2);
    }
}
