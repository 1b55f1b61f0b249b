//! A fair queue: each hotkey's queries wait in a lane of their own, and lanes are served by weight, so that
//! one validator's burst never delays another's query by more than its share.
//!
//! Self-clocked fair queueing. A query is stamped when it comes: its lane's last stamp or the clock,
//! whichever is later, plus its cost divided by the lane's weight. The smallest stamp goes next and sets the
//! clock. A lane that was idle starts at the clock: it neither saves up a claim nor pays for having waited.

use std::collections::BTreeMap;

use argus_protocols::Hotkey;

/// Names a waiting item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Waiting<T> {
    ticket: Ticket,
    stamp: f64,
    cost: f64,
    item: T,
}

#[derive(Debug)]
pub struct FairQueue<T> {
    /// By stamp, then by arrival.
    waiting: Vec<Waiting<T>>,
    /// The last stamp of each lane that is ahead of the clock.
    lanes: BTreeMap<Hotkey, f64>,
    clock: f64,
    next: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), lanes: BTreeMap::new(), clock: 0.0, next: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Adds an item and says how many go before it as things stand. `cost` in work units and `weight` are
    /// above 0. The caller bounds the length.
    pub fn push(&mut self, lane: Hotkey, weight: f64, cost: f64, item: T) -> (Ticket, usize) {
        debug_assert!(weight > 0.0 && cost > 0.0);
        let start = self.lanes.get(&lane).copied().unwrap_or(self.clock).max(self.clock);
        let stamp = start + cost / weight;
        self.lanes.insert(lane, stamp);
        let ticket = Ticket(self.next);
        self.next += 1;
        let position = self.waiting.partition_point(|w| w.stamp <= stamp);
        self.waiting.insert(position, Waiting { ticket, stamp, cost, item });
        (ticket, position)
    }

    /// Takes the item whose turn it is, and its cost.
    pub fn pop(&mut self) -> Option<(f64, T)> {
        if self.waiting.is_empty() {
            return None;
        }
        let first = self.waiting.remove(0);
        self.clock = first.stamp;
        let clock = self.clock;
        self.lanes.retain(|_, stamp| *stamp > clock);
        Some((first.cost, first.item))
    }

    /// Takes an item out before its turn, if it still waits.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let place = self.waiting.iter().position(|w| w.ticket == ticket)?;
        Some(self.waiting.remove(place).item)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Work units that wait.
    pub fn cost(&self) -> f64 {
        self.waiting.iter().map(|w| w.cost).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hotkey(n: u8) -> Hotkey {
        Hotkey::from_bytes([n; 32])
    }

    fn drain(queue: &mut FairQueue<u8>) -> Vec<u8> {
        std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect()
    }

    #[test]
    fn a_burst_does_not_delay_anothers_query() {
        let mut queue = FairQueue::default();
        for _ in 0..10 {
            queue.push(hotkey(1), 1.0, 1.0, 1);
        }
        let (_, position) = queue.push(hotkey(2), 1.0, 1.0, 2);
        assert_eq!(position, 1);
        assert_eq!(drain(&mut queue)[..3], [1, 2, 1]);
    }

    #[test]
    fn turns_follow_weights_and_costs() {
        let mut queue = FairQueue::default();
        for _ in 0..30 {
            queue.push(hotkey(1), 3.0, 1.0, 1);
            queue.push(hotkey(2), 1.0, 1.0, 2);
        }
        let heavy = drain(&mut queue).into_iter().take(20).filter(|lane| *lane == 1).count();
        assert!((14..=16).contains(&heavy), "{heavy} of 20 turns for three quarters of the weight");
        for _ in 0..10 {
            queue.push(hotkey(1), 1.0, 4.0, 1);
            queue.push(hotkey(2), 1.0, 1.0, 2);
        }
        let cheap = drain(&mut queue).into_iter().take(10).filter(|lane| *lane == 2).count();
        assert!((7..=9).contains(&cheap), "{cheap} of 10 turns for a quarter of the cost");
    }

    #[test]
    fn idle_lanes_save_nothing_up_and_are_forgotten() {
        let mut queue = FairQueue::default();
        for _ in 0..100 {
            queue.push(hotkey(1), 1.0, 1.0, 1);
            queue.pop();
        }
        queue.push(hotkey(1), 1.0, 1.0, 1);
        queue.push(hotkey(2), 1.0, 1.0, 2);
        queue.push(hotkey(2), 1.0, 1.0, 2);
        assert_eq!(drain(&mut queue), [1, 2, 2]);
        assert!(queue.lanes.is_empty());
    }

    #[test]
    fn who_left_is_not_served() {
        let mut queue = FairQueue::default();
        let (first, _) = queue.push(hotkey(1), 1.0, 1.0, 1);
        queue.push(hotkey(2), 1.0, 2.0, 2);
        assert_eq!(queue.remove(first), Some(1));
        assert_eq!(queue.remove(first), None);
        assert_eq!((queue.len(), queue.cost()), (1, 2.0));
        assert_eq!(drain(&mut queue), [2]);
    }

    proptest! {
        /// However a rival floods, a lane waits for its share of the work and no more.
        #[test]
        fn nobody_starves(flood in 1usize..200, weight in 0.05f64..1.0) {
            let mut queue = FairQueue::default();
            for _ in 0..flood {
                queue.push(hotkey(1), 1.0, 1.0, 1);
            }
            queue.push(hotkey(2), weight, 1.0, 2);
            let before = drain(&mut queue).into_iter().take_while(|lane| *lane == 1).count();
            prop_assert!(before as f64 <= (1.0 / weight).ceil(), "{before} went before");
        }

        #[test]
        fn a_lane_keeps_its_order(lanes in prop::collection::vec((0u8..4, 1u8..9), 1..60)) {
            let mut queue = FairQueue::default();
            for (i, (lane, cost)) in lanes.iter().enumerate() {
                queue.push(hotkey(*lane), f64::from(*lane) + 0.5, f64::from(*cost), i as u8);
            }
            let served = drain(&mut queue);
            prop_assert_eq!(served.len(), lanes.len());
            for lane in 0..4 {
                let of: Vec<u8> = served.iter().copied().filter(|i| lanes[*i as usize].0 == lane).collect();
                prop_assert!(of.is_sorted());
            }
        }
    }
}
