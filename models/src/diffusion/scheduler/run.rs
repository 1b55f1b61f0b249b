//! A planned run, and its way through the steps.

use std::collections::VecDeque;

use super::config::{Bounds, MAX_ORDER};
use super::multistep::{OutputWeights, Solver};
use super::rules::{Deviation, Mix, Reading, Rule};
use crate::noise;

/// The steps of one run, from noise to a picture.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// What to multiply the starting noise by.
    pub(crate) initial_scale: f32,
    pub(crate) steps: Vec<Step>,
    pub(super) bounds: Bounds,
    /// That of the samplers that look back.
    pub(super) solver: Option<Solver>,
}

/// One step: the network is asked at `timestep`, and its prediction moves the latents.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) timestep: f64,
    /// What to multiply the latents by before the network sees them.
    pub(crate) input_scale: f32,
    pub(super) mix: Mix,
    pub(super) reading: Reading,
    pub(super) rule: Rule,
}

impl Plan {
    /// Where a run begins that keeps something of a given picture: at 1 with the first step, at 0
    /// after the last.
    pub(crate) fn begin_at_strength(&self, strength: f32) -> usize {
        // As diffusers: the number as written, in double precision, so that 0.7 of 10 steps is 7.
        let strength = strength.to_string().parse::<f64>().unwrap_or(1.0);
        let taken = (self.steps.len() as f64 * strength) as usize;
        self.steps.len() - taken.min(self.steps.len())
    }

    /// The latents of a picture with as much noise as there is before step `step`; after the last
    /// step there is none. `noise`: standard normal, of the picture's length.
    pub(crate) fn add_noise(&self, picture: &[f32], noise: &[f32], step: usize) -> Vec<f32> {
        let mix = self.steps.get(step).map_or(Mix::CLEAN, |step| step.mix);
        picture.iter().zip(noise).map(|(picture, noise)| mix.signal * picture + mix.noise * noise).collect()
    }

    /// How many vectors of the latents' length a run that began at step `begin` carries to step `next`
    /// besides the latents.
    pub(crate) fn remembered(&self, begin: usize, next: usize) -> usize {
        let (outputs, before) = self.looks_back(begin, next);
        outputs + usize::from(before)
    }

    fn looks_back(&self, begin: usize, next: usize) -> (usize, bool) {
        match &self.solver {
            Some(solver) if next < self.steps.len() => solver.remembered(next - begin),
            _ => (0, false),
        }
    }

    /// A run that began at step `begin` and comes to step `next`, by what it carries: as
    /// [`Run::remembered`] gives it, [`Plan::remembered`] vectors.
    pub(crate) fn resume(&self, begin: usize, next: usize, remembered: &[Vec<f32>]) -> Run<'_> {
        let (outputs, has_before) = self.looks_back(begin, next);
        let (outputs, before) = remembered.split_at(outputs.min(remembered.len()));
        let order = match &self.solver {
            Some(solver) if next > begin => solver.order(next - 1, next - 1 - begin),
            _ => 1,
        };
        let before = before.first().filter(|_| has_before).cloned().unwrap_or_default();
        Run { plan: self, begin, next, outputs: outputs.iter().cloned().collect(), before, order }
    }

    /// Starts at step `begin`.
    pub(crate) fn begin(&self, begin: usize) -> Run<'_> {
        Run { plan: self, begin, next: begin, outputs: VecDeque::new(), before: Vec::new(), order: 1 }
    }
}

/// Standard normal noise for the steps of samplers that add some.
pub(crate) trait StepNoise {
    /// Fills `values` with the noise of step `step`, counted from the start of the plan.
    fn fill(&mut self, step: usize, values: &mut [f32]);
}

/// The noise that a seed names: of each step a stream of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeededNoise {
    pub(crate) seed: u64,
}

/// The noise stream of the first step; the steps after it have those that follow.
const STEP_STREAMS: u64 = 1 << 32;

impl StepNoise for SeededNoise {
    fn fill(&mut self, step: usize, values: &mut [f32]) {
        noise::fill_normal(self.seed, STEP_STREAMS + step as u64, 0, values);
    }
}

/// A run on its way: what multistep samplers remember.
#[derive(Debug, Clone)]
pub(crate) struct Run<'a> {
    plan: &'a Plan,
    begin: usize,
    next: usize,
    /// The last predictions, the newest first.
    outputs: VecDeque<Vec<f32>>,
    /// The latents before the last step.
    before: Vec<f32>,
    /// The order of the last step.
    order: usize,
}

impl<'a> Run<'a> {
    pub(crate) fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// The index of the next step in the plan; one past the last after it.
    pub(crate) fn next(&self) -> usize {
        self.next
    }

    pub(crate) fn next_step(&self) -> Option<&'a Step> {
        self.plan.steps.get(self.next)
    }

    /// What the next step looks back at: the last predictions, the newest first, then the latents that the
    /// last step started from.
    pub(crate) fn remembered(&self) -> impl Iterator<Item = &[f32]> {
        let (outputs, before) = self.plan.looks_back(self.begin, self.next);
        let before = before.then_some(self.before.as_slice());
        self.outputs.iter().take(outputs).map(Vec::as_slice).chain(before)
    }

    /// Takes the next step: moves `latents` in place by what the network said of them.
    ///
    /// `output`: as long as the latents, or twice as long where the network also predicts a
    /// variance. Nothing happens after the last step.
    pub(crate) fn step(&mut self, latents: &mut [f32], output: &[f32], noise: &mut dyn StepNoise) {
        let plan = self.plan;
        let Some(step) = plan.steps.get(self.next) else { return };
        let (output, variance) = output.split_at(latents.len().min(output.len()));
        match &plan.solver {
            Some(solver) => self.step_back_and_on(solver, step, latents, output, noise),
            None => step.take(plan.bounds, self.next, latents, output, variance, noise),
        }
        self.next += 1;
    }

    fn step_back_and_on(
        &mut self,
        solver: &Solver,
        step: &Step,
        latents: &mut [f32],
        output: &[f32],
        noise: &mut dyn StepNoise,
    ) {
        let prediction = step.predict(solver, self.plan.bounds, latents, output);
        if self.next > self.begin
            && let Some(correction) = solver.correct(self.next, self.order)
        {
            latents.copy_from_slice(&self.before);
            self.combine(latents, correction.update.latents, &correction.update.outputs);
            add(latents, correction.newest, &prediction);
        }
        self.outputs.push_front(prediction);
        self.outputs.truncate(MAX_ORDER);
        self.order = solver.order(self.next, self.next - self.begin);
        self.before = latents.to_vec();
        let update = solver.update(self.next, self.order);
        self.combine(latents, update.latents, &update.outputs);
        if solver.is_random() {
            let mut values = vec![0.0; latents.len()];
            noise.fill(self.next, &mut values);
            add(latents, update.noise, &values);
        }
    }

    fn combine(&self, latents: &mut [f32], scale: f64, weights: &OutputWeights) {
        latents.iter_mut().for_each(|latent| *latent *= scale as f32);
        for (output, weight) in self.outputs.iter().zip(weights) {
            add(latents, *weight, output);
        }
    }
}

fn add(latents: &mut [f32], weight: f64, values: &[f32]) {
    if weight != 0.0 {
        latents.iter_mut().zip(values).for_each(|(latent, value)| *latent += weight as f32 * value);
    }
}

impl Step {
    fn take(
        &self,
        bounds: Bounds,
        index: usize,
        latents: &mut [f32],
        output: &[f32],
        variance: &[f32],
        noise: &mut dyn StepNoise,
    ) {
        let (mut pictures, epsilons) = self.read(latents, output);
        bounds.apply(&mut pictures);
        let mut values = vec![0.0; latents.len()];
        if self.rule.is_random() {
            noise.fill(index, &mut values);
        }
        for (place, latent) in latents.iter_mut().enumerate() {
            let variance = variance.get(place).copied().unwrap_or(0.0);
            *latent = self.rule.next(*latent, pictures[place], epsilons[place], variance, values[place]);
        }
    }

    fn read(&self, latents: &[f32], output: &[f32]) -> (Vec<f32>, Vec<f32>) {
        latents.iter().zip(output).map(|(latent, output)| self.reading.read(*latent, *output)).unzip()
    }

    /// What a solver takes the network's prediction for: the picture or the noise.
    fn predict(&self, solver: &Solver, bounds: Bounds, latents: &[f32], output: &[f32]) -> Vec<f32> {
        let (mut pictures, epsilons) = self.read(latents, output);
        if solver.predicts_picture() {
            bounds.apply(&mut pictures);
            return pictures;
        }
        if bounds == Bounds::None {
            return epsilons;
        }
        bounds.apply(&mut pictures);
        let Mix { signal, noise } = self.mix;
        latents.iter().zip(pictures).map(|(latent, picture)| (latent - signal * picture) / noise).collect()
    }

    /// Whether the network gives a variance beside its prediction, twice as many channels in all.
    #[allow(dead_code, reason = "for networks that predict a variance")]
    pub(crate) fn takes_variance(&self) -> bool {
        matches!(self.rule, Rule::Ddpm { deviation: Deviation::Learned { .. }, .. })
    }
}
