//! The states of runs just answered, kept for as long as a validator may ask to see some of them.
//!
//! Bounded in bytes over all queries and for each run, and in time by the stream that they were answered on.
//! A run whose states do not fit is answered without a commitment. States show the picture, so none are kept
//! of one that may not leave.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use argus_protocols::{
    Challenge, Commitment, Opening, limits,
    merkle::{self, Hash},
    trajectory::OpenedState,
};
use serde::{Deserialize, Serialize};

/// The share of all memory for states that one run may take, as a divisor.
const RUNS: usize = 4;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Memory for the states of runs that validators may still ask about, MiB; a quarter of it for one run.
    /// With 0 nothing is committed to, and validators check answers by making them themselves.
    pub memory_mib: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory_mib: 512 }
    }
}

impl Settings {
    /// What is wrong with these settings, as a sentence that says what to do.
    pub fn validate(&self) -> Result<(), String> {
        const MOST: u32 = 1 << 20;
        match self.memory_mib <= MOST {
            true => Ok(()),
            false => Err(format!("trajectories.memory_mib is {}: give {MOST} at most", self.memory_mib)),
        }
    }
}

/// Where states are kept: counts bytes, the states themselves are with their queries.
#[derive(Clone, Debug)]
pub struct Shelf {
    free: Arc<AtomicUsize>,
    for_one: usize,
}

/// Room on the shelf, given back when dropped.
#[derive(Debug)]
pub struct Room {
    free: Arc<AtomicUsize>,
    bytes: usize,
}

impl Shelf {
    pub fn new(settings: &Settings) -> Self {
        let bytes = settings.memory_mib as usize * (1 << 20);
        Self { free: Arc::new(AtomicUsize::new(bytes)), for_one: bytes / RUNS }
    }

    /// Room for the states of one run, as many as there may be.
    pub fn room(&self) -> Option<Room> {
        let take = |free: usize| free.checked_sub(self.for_one);
        let taken = self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        (self.for_one > 0 && taken.is_ok()).then(|| Room { free: self.free.clone(), bytes: self.for_one })
    }
}

impl Room {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what is not needed; `false` if there was too little.
    fn shrink(&mut self, bytes: usize) -> bool {
        let Some(left) = self.bytes.checked_sub(bytes) else { return false };
        self.bytes = bytes;
        self.free.fetch_add(left, Ordering::AcqRel);
        true
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.free.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

/// All states of one run.
#[derive(Debug)]
pub struct Trajectory {
    states: Vec<Vec<u8>>,
    leaves: Vec<Hash>,
    commitment: Commitment,
    _room: Room,
}

impl Trajectory {
    /// Commits to states; `None` where there are none, more than fit, or ones too large to be shown. Hashes all of them: not for an
    /// async thread.
    pub fn new(states: Vec<Vec<u8>>, mut room: Room) -> Option<Self> {
        let fit = states.iter().all(|state| state.len() <= limits::STATE);
        if !fit || !room.shrink(states.iter().map(Vec::len).sum()) {
            return None;
        }
        let leaves: Vec<Hash> = (0..).zip(&states).map(|(index, state)| merkle::leaf(index, state)).collect();
        let commitment = Commitment::of(&leaves)?;
        Some(Self { states, leaves, commitment, _room: room })
    }

    pub fn commitment(&self) -> Commitment {
        self.commitment
    }

    /// The states that a challenge names; `None` if there is one that this run does not have.
    pub fn open(&self, challenge: &Challenge) -> Option<Opening> {
        let open = |index: &u32| {
            let place = usize::try_from(*index).ok()?;
            let (state, path) = (self.states.get(place)?.clone(), merkle::path(&self.leaves, place)?);
            Some(OpenedState { index: *index, state, path })
        };
        Some(Opening { states: challenge.states.iter().map(open).collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf() -> Shelf {
        Shelf::new(&Settings { memory_mib: 1 })
    }

    #[test]
    fn what_was_committed_to_can_be_opened() {
        let states: Vec<Vec<u8>> = (0..6).map(|index| vec![index; 40]).collect();
        let trajectory = Trajectory::new(states.clone(), shelf().room().unwrap()).unwrap();
        let commitment = trajectory.commitment();
        assert_eq!(commitment.steps(), 5);
        let challenge = Challenge::of_steps(&[2], &commitment);
        let opened = trajectory.open(&challenge).unwrap().verify(&challenge, &commitment).unwrap();
        let opened: Vec<u32> = opened.iter().map(|(index, _)| *index).collect();
        assert_eq!(opened, [0, 2, 3, 5]);
        assert!(trajectory.open(&Challenge { states: vec![6] }).is_none());
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let shelf = shelf();
        let free = || shelf.free.load(Ordering::Relaxed);
        let rooms: Vec<Room> = std::iter::from_fn(|| shelf.room()).collect();
        assert_eq!((rooms.len(), free()), (RUNS, 0));
        drop(rooms);
        let kept = Trajectory::new(vec![vec![0; 100]; 2], shelf.room().unwrap()).unwrap();
        assert_eq!(free(), (1 << 20) - 200);
        let too_many = vec![vec![0; 1 << 18], vec![0]];
        assert!(Trajectory::new(too_many, shelf.room().unwrap()).is_none());
        assert!(Trajectory::new(Vec::new(), shelf.room().unwrap()).is_none());
        drop(kept);
        assert_eq!(free(), 1 << 20);
        assert!(Shelf::new(&Settings { memory_mib: 0 }).room().is_none());
    }
}
