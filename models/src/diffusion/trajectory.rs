//! Trajectory audits: the states of a run, and taking some of its steps again from states that somebody else
//! says theirs were.
//!
//! A state is all that a sampler's next step depends on besides request and model: the latents, and what
//! multistep solvers remember. So each step can be checked by itself: state i + 1 is a function of state i.
//! `protocols/SPEC.md` §4.7 says the layout byte by byte; [`StepControl::record`] hears each state of a run.
//!
//! What is shown comes from somebody who may lie: lengths and numbers are checked before anything runs, and
//! memory is bounded by what was shown and the request's size. A step that was not really taken differs; how
//! much two honest devices may differ is for the caller to say, [`Deviation::NONE`] is equality to the bit.

use super::canvas::Canvas;
use super::denoise::Draws;
use super::request::Generate;
use super::scheduler::{Plan, Run, SeededNoise};
use super::{GenerateError, Pipeline, StepControl};
use crate::picture::RgbPicture;

/// Bytes of one number of a state.
const NUMBER: usize = size_of::<f32>();

/// What a miner showed of its run.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// How many states the miner says the run had: one more than steps.
    pub states: usize,
    /// Some of them by their indices: the first, the last, and those before and after each of `steps`.
    pub opened: Vec<(usize, Vec<u8>)>,
    /// The steps to be taken again.
    pub steps: Vec<usize>,
    /// What is said to be made of the last state.
    pub picture: RgbPicture,
}

/// How far something is from what it should be, in relation to how far it came: 0 for equal bits.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Deviation(pub f32);

impl Deviation {
    /// Not a bit differs.
    pub const NONE: Self = Self(0.0);

    /// The root mean square of the difference, as a share of that of the way from `origin` to `expected`.
    fn of(found: &[f32], expected: &[f32], origin: Option<&[f32]>) -> Self {
        if found.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())) {
            return Self::NONE;
        }
        let square = |x: f32| f64::from(x) * f64::from(x);
        let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
        let way: f64 = match origin {
            Some(origin) => expected.iter().zip(origin).map(|(a, b)| square(a - b)).sum(),
            None => expected.iter().copied().map(square).sum(),
        };
        // Whatever differs does not count as equal, and nothing that is not a number passes a bound.
        match (difference / way).sqrt() as f32 {
            share if share.is_nan() => Self(f32::INFINITY),
            share => Self(share.max(f32::MIN_POSITIVE)),
        }
    }

    fn or_worse(self, other: Self) -> Self {
        if other > self { other } else { self }
    }
}

/// What became of an audit.
#[derive(Debug, Clone, PartialEq)]
pub enum Audited {
    /// What was shown cannot be states of this run.
    Unfit(&'static str),
    Checked(Deviations),
}

/// How far what was shown is from what follows from the request and from what was shown before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviations {
    /// Of state 0 from the noise, or the picture with noise, that the request names.
    pub start: Deviation,
    /// Of the state after each step that was taken again.
    pub steps: Vec<(usize, Deviation)>,
    /// Mean absolute difference, in levels of 255, between the picture sent and the one that the last state
    /// makes.
    pub picture: f64,
}

impl Deviations {
    /// The largest of the latents' deviations.
    pub fn farthest(&self) -> Deviation {
        self.steps.iter().fold(self.start, |farthest, (_, deviation)| farthest.or_worse(*deviation))
    }
}

/// A state, decoded.
struct State {
    latents: Vec<f32>,
    /// The predictions, the newest first, then the latents that the last step started from.
    remembered: Vec<Vec<f32>>,
}

/// The bytes of a state, for [`StepControl::record`].
pub(super) fn encode(latents: &[f32], run: &Run) -> Vec<u8> {
    let vectors = || std::iter::once(latents).chain(run.remembered());
    let mut bytes = Vec::with_capacity(NUMBER * vectors().map(<[f32]>::len).sum::<usize>());
    for number in vectors().flatten() {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes
}

impl State {
    /// Reads state `taken` of a run that begins at step `begin` of `plan`.
    fn decode(
        bytes: &[u8],
        plan: &Plan,
        begin: usize,
        taken: usize,
        length: usize,
    ) -> Result<Self, &'static str> {
        let vectors = 1 + plan.remembered(begin, begin + taken);
        if bytes.len() != vectors * length * NUMBER {
            return Err("a state of another length than this run has");
        }
        let numbers = bytes.chunks_exact(NUMBER).map(|bytes| {
            let bytes: [u8; NUMBER] = bytes.try_into().expect("chunks are exact");
            f32::from_le_bytes(bytes)
        });
        let numbers: Vec<f32> = numbers.collect();
        if !numbers.iter().all(|number| number.is_finite()) {
            return Err("a state with numbers that are not finite");
        }
        let mut vectors = numbers.chunks_exact(length).map(<[f32]>::to_vec);
        let latents = vectors.next().ok_or("a state without latents")?;
        Ok(Self { latents, remembered: vectors.collect() })
    }

    /// How far this is from `expected`, which a step made of the latents `from`.
    fn deviation(&self, expected: &Self, from: &[f32]) -> Deviation {
        let latents = Deviation::of(&self.latents, &expected.latents, Some(from));
        // Predictions are compared by themselves: they are not near the latents.
        let remembered = self.remembered.iter().zip(&expected.remembered);
        remembered.fold(latents, |farthest, (found, expected)| {
            farthest.or_worse(Deviation::of(found, expected, None))
        })
    }
}

/// An opened state is asked for by its index.
struct Opened(Vec<(usize, State)>);

impl Opened {
    fn read(shown: &Shown, plan: &Plan, begin: usize, length: usize) -> Result<Self, &'static str> {
        let last = plan.steps.len() - begin;
        if shown.states != last + 1 {
            return Err("another number of states than this run has");
        }
        if shown.steps.iter().any(|step| *step >= last) {
            return Err("a step that this run does not have");
        }
        let decode = |(index, bytes): &(usize, Vec<u8>)| match *index <= last {
            true => Ok((*index, State::decode(bytes, plan, begin, *index, length)?)),
            false => Err("a state beyond the last"),
        };
        let opened = Self(shown.opened.iter().map(decode).collect::<Result<_, _>>()?);
        let needed = shown.steps.iter().flat_map(|step| [*step, step + 1]).chain([0, last]);
        match needed.into_iter().all(|index| opened.get(index).is_some()) {
            true => Ok(opened),
            false => Err("a state that is needed was not opened"),
        }
    }

    fn get(&self, index: usize) -> Option<&State> {
        self.0.iter().find(|(opened, _)| *opened == index).map(|(_, state)| state)
    }
}

impl Pipeline {
    /// Steps of a request's run: those that it asks for, less where it keeps something of a picture.
    pub fn steps_of(&self, request: &Generate) -> Result<usize, GenerateError> {
        let plan = self.check(request)?;
        let canvas = self.canvas(request, &plan)?;
        Ok(plan.steps.len() - begin_of(canvas.as_ref(), &plan))
    }

    /// Takes some steps of a request's run again, from the states that somebody else says that its own were,
    /// and makes the picture of the last one. Costs those steps, reading the request, and decoding.
    pub fn audit(
        &self,
        request: &Generate,
        shown: &Shown,
        control: &mut (dyn StepControl + Send),
    ) -> Result<Audited, GenerateError> {
        let plan = self.check(request)?;
        self.pool.run(|| {
            let canvas = self.canvas(request, &plan)?;
            let begin = begin_of(canvas.as_ref(), &plan);
            let length = self.latent_count(request);
            match Opened::read(shown, &plan, begin, length) {
                Err(unfit) => Ok(Audited::Unfit(unfit)),
                Ok(opened) => self.compare(request, canvas.as_ref(), &plan, shown, &opened, control),
            }
        })
    }

    fn compare(
        &self,
        request: &Generate,
        canvas: Option<&Canvas>,
        plan: &Plan,
        shown: &Shown,
        opened: &Opened,
        control: &mut (dyn StepControl + Send),
    ) -> Result<Audited, GenerateError> {
        const NOT_OPENED: Audited = Audited::Unfit("a state that is needed was not opened");
        let (begin, of) = (begin_of(canvas, plan), shown.steps.len());
        let draws = Draws::of_seed(request.seed, self.latent_count(request));
        let (start, scene) = self.set_out(request, canvas, plan, draws)?;
        let Some(first) = opened.get(0) else { return Ok(NOT_OPENED) };
        let start = Deviation::of(&first.latents, &start, None);
        let mut steps = Vec::with_capacity(of);
        for (done, &step) in shown.steps.iter().enumerate() {
            if control.step(done, of).is_break() {
                return Err(GenerateError::Cancelled { done, of });
            }
            let (Some(before), Some(after)) = (opened.get(step), opened.get(step + 1)) else {
                return Ok(NOT_OPENED);
            };
            let mut run = plan.resume(begin, begin + step, &before.remembered);
            let mut latents = before.latents.clone();
            self.take_step(request, &scene, &mut run, &mut latents, &mut SeededNoise { seed: request.seed })?;
            let remembered = run.remembered().map(<[f32]>::to_vec).collect();
            let expected = State { latents, remembered };
            steps.push((step, after.deviation(&expected, &before.latents)));
        }
        let _ = control.step(of, of);
        let Some(last) = opened.get(plan.steps.len() - begin) else { return Ok(NOT_OPENED) };
        let made = match self.decode(last.latents.clone(), request) {
            Ok(made) => match canvas {
                Some(canvas) => canvas.finish(made),
                None => made,
            },
            // No device makes a picture of such latents.
            Err(GenerateError::NotFinite) => return Ok(Audited::Unfit("a last state that gives no picture")),
            Err(error) => return Err(error),
        };
        let Some(picture) = made.mean_abs_difference(&shown.picture) else {
            return Ok(Audited::Unfit("a picture of another size"));
        };
        Ok(Audited::Checked(Deviations { start, steps, picture }))
    }
}

/// The step of the plan that a run begins with.
pub(super) fn begin_of(canvas: Option<&Canvas>, plan: &Plan) -> usize {
    canvas.map_or(0, |canvas| plan.begin_at_strength(canvas.strength))
}

#[cfg(test)]
#[path = "trajectory_tests.rs"]
mod tests;
