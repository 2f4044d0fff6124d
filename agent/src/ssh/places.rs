//! The places of connections in their handshake: bounded, and shared out fairly between addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tokio::task::AbortHandle;
use tokio::time::{Duration, Instant};

/// Connections in their handshake, oldest first.
pub(super) struct Places {
    taken: Vec<Place>,
    places_max: usize,
    /// How long one may stay that others wait for.
    grace: Duration,
}

struct Place {
    address: IpAddr,
    since: Instant,
    task: AbortHandle,
}

impl Places {
    pub(super) const fn new(places_max: usize, grace: Duration) -> Self {
        Self { taken: Vec::new(), places_max, grace }
    }

    /// Whether there is a place for one more from `address`. Where all are taken, somebody's
    /// handshake is ended for it: the oldest of the address that takes the most places, so that one
    /// host cannot keep the others out; else the oldest that has had its time.
    pub(super) fn make_room(&mut self, address: IpAddr) -> bool {
        self.taken.retain(|place| !place.task.is_finished());
        if self.taken.len() < self.places_max {
            return true;
        }
        let Some(at) = self.to_end(address) else { return false };
        self.taken.remove(at).task.abort();
        true
    }

    pub(super) fn take(&mut self, address: IpAddr, task: AbortHandle) {
        self.taken.push(Place { address, since: Instant::now(), task });
    }

    fn to_end(&self, address: IpAddr) -> Option<usize> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for place in &self.taken {
            let count = counts.entry(place.address).or_default();
            *count = count.saturating_add(1);
        }
        let own = counts.get(&address).copied().unwrap_or_default().saturating_add(1);
        let crowd = counts.into_iter().max_by_key(|(_, count)| *count).filter(|(_, count)| *count > own);
        match crowd {
            Some((crowd, _)) => self.taken.iter().position(|place| place.address == crowd),
            None => self.taken.first().filter(|place| place.since.elapsed() > self.grace).map(|_| 0),
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// Takes a place; says which of those before had to go.
    async fn come(places: &mut Places, tasks: &mut Vec<tokio::task::JoinHandle<()>>, last: u8) -> Option<Vec<usize>> {
        let address = IpAddr::from([10, 0, 0, last]);
        let room = places.make_room(address);
        tokio::task::yield_now().await;
        let gone = tasks.iter().enumerate().filter(|(_, task)| task.is_finished()).map(|(at, _)| at).collect();
        if room {
            let task = tokio::spawn(std::future::pending());
            places.take(address, task.abort_handle());
            tasks.push(task);
        }
        room.then_some(gone)
    }

    #[tokio::test]
    async fn a_crowd_gives_way_and_nobody_else() {
        let mut places = Places::new(4, Duration::from_secs(3600));
        let mut tasks = Vec::new();
        for _ in 0..4 {
            assert_eq!(come(&mut places, &mut tasks, 1).await, Some(vec![]));
        }
        assert_eq!(come(&mut places, &mut tasks, 1).await, None);
        assert_eq!(come(&mut places, &mut tasks, 2).await, Some(vec![0]));
        // Two of one address are no more than two of another.
        assert_eq!(come(&mut places, &mut tasks, 2).await, Some(vec![0, 1]));
        assert_eq!(come(&mut places, &mut tasks, 2).await, None);
        assert_eq!(come(&mut places, &mut tasks, 1).await, None);
        assert_eq!(come(&mut places, &mut tasks, 3).await.map(|gone| gone.len()), Some(3));
    }

    #[tokio::test]
    async fn the_oldest_gives_way_after_its_time() {
        let mut places = Places::new(2, Duration::ZERO);
        let mut tasks = Vec::new();
        for _ in 0..2 {
            assert_eq!(come(&mut places, &mut tasks, 1).await, Some(vec![]));
        }
        assert_eq!(come(&mut places, &mut tasks, 1).await, Some(vec![0]));
        assert_eq!(come(&mut places, &mut tasks, 1).await, Some(vec![0, 1]));
    }

    #[tokio::test]
    async fn who_is_done_leaves_its_place() {
        let mut places = Places::new(1, Duration::from_secs(3600));
        let address = IpAddr::from([10, 0, 0, 1]);
        let task = tokio::spawn(std::future::ready(()));
        places.take(address, task.abort_handle());
        task.await.unwrap();
        assert!(places.make_room(address));
    }
}
