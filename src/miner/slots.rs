//! Turns: as many queries at work as the backend takes, the others in a fair queue; and how long all that
//! will take, by what was measured.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use argus_protocols::{Hotkey, TaskKind};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::queue::{FairQueue, Ticket};

/// Weight of the newest measurement in the running mean.
const NEWEST: f64 = 0.2;
/// Seconds a work unit is thought to take before anything was measured.
const UNMEASURED: f64 = 1.0;

struct State {
    free: usize,
    waiting: FairQueue<oneshot::Sender<Turn>>,
    /// Work units now at work.
    at_work: f64,
    seconds_per_unit: BTreeMap<(TaskKind, String), f64>,
}

/// The places at work of one miner.
#[derive(Clone)]
pub struct Slots {
    state: Arc<Mutex<State>>,
    all: usize,
}

/// The right to work; gives the slot to the next in the queue when dropped.
pub struct Turn {
    slots: Option<Slots>,
    work: f64,
}

/// A place in the queue; given up when dropped.
pub struct Place {
    slots: Slots,
    ticket: Option<Ticket>,
    turn: oneshot::Receiver<Turn>,
    pub position: usize,
}

impl Slots {
    pub fn new(all: usize) -> Self {
        let state = State {
            free: all,
            waiting: FairQueue::default(),
            at_work: 0.0,
            seconds_per_unit: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), all }
    }

    pub fn all(&self) -> usize {
        self.all
    }

    /// Gets in line. Position 0 and an immediate turn when a slot is free.
    pub fn enter(&self, hotkey: Hotkey, weight: f64, work: f64) -> Place {
        let (sender, turn) = oneshot::channel();
        let mut state = self.state.lock();
        if state.free > 0 {
            state.free -= 1;
            state.at_work += work;
            drop(state);
            // The receiver is right here.
            let _ = sender.send(Turn { slots: Some(self.clone()), work });
            return Place { slots: self.clone(), ticket: None, turn, position: 0 };
        }
        let (ticket, position) = state.waiting.push(hotkey, weight, work, sender);
        Place { slots: self.clone(), ticket: Some(ticket), turn, position }
    }

    /// How long a query that comes now waits for its turn.
    pub fn wait(&self, task: TaskKind, model: &str) -> Duration {
        let state = self.state.lock();
        if state.free > 0 {
            return Duration::ZERO;
        }
        // Whoever is at work is half done on average.
        let ahead = state.waiting.cost() + state.at_work / 2.0;
        Duration::from_secs_f64(ahead * state.seconds_per_unit(task, model) / self.all.max(1) as f64)
    }

    /// How long this much work takes.
    pub fn time_for(&self, task: TaskKind, model: &str, work: f64) -> Duration {
        Duration::from_secs_f64(work * self.state.lock().seconds_per_unit(task, model))
    }

    /// What a job took.
    pub fn measured(&self, task: TaskKind, model: &str, work: f64, took: Duration) {
        let newest = took.as_secs_f64() / work;
        let mut state = self.state.lock();
        let mean = state.seconds_per_unit.entry((task, model.to_owned())).or_insert(newest);
        *mean += NEWEST * (newest - *mean);
    }

    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    pub fn at_work(&self) -> usize {
        self.all - self.state.lock().free
    }

    fn pass_on(&self, work: f64) {
        let mut state = self.state.lock();
        state.at_work -= work;
        state.free += 1;
        while state.free > 0 {
            let Some((cost, sender)) = state.waiting.pop() else { return };
            state.free -= 1;
            state.at_work += cost;
            let turn = Turn { slots: Some(self.clone()), work: cost };
            if let Err(mut unwanted) = sender.send(turn) {
                // Whoever waited is gone; its turn must not come back here while the lock is held.
                unwanted.slots = None;
                state.free += 1;
                state.at_work -= cost;
            }
        }
    }
}

impl State {
    fn seconds_per_unit(&self, task: TaskKind, model: &str) -> f64 {
        let mut measured = self.seconds_per_unit.iter();
        let found = measured.find(|((t, m), _)| *t == task && m == model);
        found.map_or(UNMEASURED, |(_, seconds)| *seconds)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.take() {
            slots.pass_on(self.work);
        }
    }
}

impl Place {
    /// Resolves when it is this query's turn. Cancel-safe.
    pub async fn turn(&mut self) -> Turn {
        (&mut self.turn).await.expect("the queue outlives its places, and turns are only sent")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            // The sender is dropped outside of the lock.
            let _gone = self.slots.state.lock().waiting.remove(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const TASK: TaskKind = TaskKind::TextToImage;

    fn hotkey(n: u8) -> Hotkey {
        Hotkey::from_bytes([n; 32])
    }

    #[test]
    fn turns_are_passed_on_and_places_given_up() {
        let slots = Slots::new(1);
        let mut first = slots.enter(hotkey(1), 1.0, 1.0);
        let turn = first.turn().now_or_never().unwrap();
        let mut second = slots.enter(hotkey(1), 1.0, 1.0);
        let third = slots.enter(hotkey(1), 1.0, 1.0);
        let mut fourth = slots.enter(hotkey(1), 1.0, 1.0);
        assert_eq!((second.position, third.position, fourth.position), (0, 1, 2));
        assert!(second.turn().now_or_never().is_none());
        drop(third);
        drop(turn);
        let turn = second.turn().now_or_never().unwrap();
        drop(turn);
        let turn = fourth.turn().now_or_never().unwrap();
        assert_eq!((slots.at_work(), slots.waiting()), (1, 0));
        drop(turn);
        assert_eq!(slots.at_work(), 0);
    }

    #[test]
    fn a_turn_that_came_to_someone_who_left_is_passed_on() {
        let slots = Slots::new(1);
        let turn = slots.enter(hotkey(1), 1.0, 1.0).turn().now_or_never().unwrap();
        let second = slots.enter(hotkey(1), 1.0, 1.0);
        let mut third = slots.enter(hotkey(1), 1.0, 1.0);
        drop(turn);
        // The turn lies in the second one's channel.
        assert!(third.turn().now_or_never().is_none());
        drop(second);
        assert!(third.turn().now_or_never().is_some());
        assert_eq!(slots.at_work(), 0);
    }

    #[test]
    fn waits_come_from_measurements() {
        let slots = Slots::new(2);
        slots.measured(TASK, "m", 2.0, Duration::from_secs(1));
        assert_eq!(slots.time_for(TASK, "m", 4.0), Duration::from_secs(2));
        assert_eq!(slots.wait(TASK, "m"), Duration::ZERO);
        let places: Vec<_> = (0..4).map(|_| slots.enter(hotkey(1), 1.0, 4.0)).collect();
        // Two at work, half done, and two waiting: (4 + 8) units of half a second on two slots.
        assert_eq!(slots.wait(TASK, "m"), Duration::from_secs(3));
        drop(places);
        assert_eq!((slots.at_work(), slots.waiting()), (0, 0));
    }
}
