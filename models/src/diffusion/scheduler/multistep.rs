//! Solvers that look back: DPM-Solver(++) and UniPC, as diffusers' `DPMSolverMultistepScheduler` and
//! `UniPCMultistepScheduler`.
//!
//! A step is a weighted sum of the latents, the last predictions and noise. Only the weights differ
//! from solver to solver, and only they need more than arithmetic. With s = σ/α the noise over the
//! signal, λ = −ln s, so that e^(−h) of a step of length h in λ is the ratio of two s, and no
//! exponential is ever taken.

use super::config::{Algorithm, FinalSigma, MAX_ORDER, Sampler, Settings, SolverOptions, SolverType};
use crate::elementary;

/// Weights of predictions, the newest first.
pub(super) type OutputWeights = [f64; MAX_ORDER];

/// Latents after a step: this many times the latents before, the predictions and noise.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Update {
    pub(super) latents: f64,
    pub(super) outputs: OutputWeights,
    pub(super) noise: f64,
}

/// What corrects the latents that a step started from, once its prediction is known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Correction {
    /// Of the latents before, and of the predictions before.
    pub(super) update: Update,
    /// Of the new prediction.
    pub(super) newest: f64,
}

/// A noise level.
#[derive(Debug, Clone, Copy)]
struct Level {
    /// Noise over signal.
    ratio: f64,
    signal: f64,
    noise: f64,
}

impl Level {
    fn new(sigma: f32) -> Self {
        let ratio = f64::from(sigma);
        let signal = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { ratio, signal, noise: ratio * signal }
    }

    /// How far λ grows from here to `to`; infinite where no noise is left.
    fn until(self, to: Self) -> f64 {
        if to.ratio > 0.0 { elementary::ln(self.ratio / to.ratio) } else { f64::INFINITY }
    }
}

/// The solver of one run.
#[derive(Debug, Clone)]
pub(super) struct Solver {
    is_unipc: bool,
    options: SolverOptions,
    ends_at_zero: bool,
    /// One more than there are steps.
    levels: Vec<Level>,
}

/// A run shorter than this ends with steps of lower order.
const SHORT_RUN: usize = 15;

impl Solver {
    pub(super) fn new(settings: &Settings, sigmas: &[f32]) -> Self {
        Self {
            is_unipc: settings.sampler == Sampler::UniPc,
            options: settings.solver.clone(),
            ends_at_zero: settings.final_sigma == FinalSigma::Zero,
            levels: sigmas.iter().map(|sigma| Level::new(*sigma)).collect(),
        }
    }

    pub(super) fn predicts_picture(&self) -> bool {
        match self.is_unipc {
            true => self.options.predicts_picture,
            false => self.options.algorithm.predicts_picture(),
        }
    }

    pub(super) fn is_random(&self) -> bool {
        !self.is_unipc && matches!(self.options.algorithm, Algorithm::SdeDpmPlusPlus | Algorithm::SdeDpm)
    }

    /// How many vectors the step after `taken` others looks back at: predictions, and for the corrector the
    /// latents that the last step started from.
    pub(super) fn remembered(&self, taken: usize) -> (usize, bool) {
        match self.is_unipc {
            true => (taken.min(self.options.order), taken > 0),
            false => (taken.min(self.options.order - 1), false),
        }
    }

    /// The order of step `index` of a run that began `taken` steps before.
    pub(super) fn order(&self, index: usize, taken: usize) -> usize {
        let SolverOptions { order, lower_order_final, euler_at_final, .. } = self.options;
        let steps = self.levels.len() - 1;
        let left = steps - index;
        let reachable = order.min(taken + 1);
        if self.is_unipc {
            return if lower_order_final { reachable.min(left) } else { reachable };
        }
        let lowered = lower_order_final && steps < SHORT_RUN;
        if left == 1 && (euler_at_final || lowered || self.ends_at_zero) {
            1
        } else if left == 2 && lowered {
            reachable.min(2)
        } else {
            reachable
        }
    }

    /// The weights of step `index` at an order.
    pub(super) fn update(&self, index: usize, order: usize) -> Update {
        match self.is_unipc {
            true => self.predict(index, order),
            false => self.dpm(index, order),
        }
    }

    fn dpm(&self, index: usize, order: usize) -> Update {
        let (from, to) = (self.levels[index], self.levels[index + 1]);
        let h = from.until(to);
        let shrunk = to.ratio / from.ratio;
        let (latents, first, noise) = match self.options.algorithm {
            Algorithm::DpmPlusPlus => (to.noise / from.noise, -to.signal * (shrunk - 1.0), 0.0),
            Algorithm::Dpm => (to.signal / from.signal, -to.noise * (1.0 / shrunk - 1.0), 0.0),
            Algorithm::SdeDpmPlusPlus => {
                let lost = 1.0 - shrunk * shrunk;
                (to.noise / from.noise * shrunk, to.signal * lost, to.noise * lost.sqrt())
            }
            Algorithm::SdeDpm => {
                let grown = 1.0 / shrunk;
                let noise = to.noise * (grown * grown - 1.0).sqrt();
                (to.signal / from.signal, -2.0 * to.noise * (grown - 1.0), noise)
            }
        };
        let mut outputs = [first, 0.0, 0.0];
        // Two equal levels, as Karras' spacing has at the end: nothing is left to do.
        if order > 1 && h > 0.0 && h.is_finite() {
            let slopes = self.slopes(index, order, h);
            let (second, third) = self.higher_weights(to, h, first, order);
            for (weight, slope) in [(second, slopes.0), (third, slopes.1)] {
                outputs.iter_mut().zip(slope).for_each(|(output, slope)| *output += weight * slope);
            }
        }
        Update { latents, outputs, noise }
    }

    /// DPM-Solver's first and second derivative of the prediction, as weights of predictions.
    fn slopes(&self, index: usize, order: usize, h: f64) -> (OutputWeights, OutputWeights) {
        let before = |back: usize| self.levels[index - back - 1].until(self.levels[index - back]) / h;
        let near = before(0);
        let recent = [1.0 / near, -1.0 / near, 0.0];
        if order == 2 {
            return (recent, [0.0; MAX_ORDER]);
        }
        let far = before(1);
        let older = [0.0, 1.0 / far, -1.0 / far];
        let mut slopes = (recent, [0.0; MAX_ORDER]);
        for output in 0..MAX_ORDER {
            let bend = (recent[output] - older[output]) / (near + far);
            slopes.0[output] += near * bend;
            slopes.1[output] = bend;
        }
        slopes
    }

    /// The weights of those derivatives.
    fn higher_weights(&self, to: Level, h: f64, first: f64, order: usize) -> (f64, f64) {
        if order == 2 && self.options.kind != SolverType::Heun {
            return (0.5 * first, 0.0);
        }
        let shrunk = elementary::exp(-h);
        match self.options.algorithm {
            Algorithm::DpmPlusPlus => {
                let lost = shrunk - 1.0;
                (to.signal * (lost / h + 1.0), -to.signal * ((lost + h) / (h * h) - 0.5))
            }
            Algorithm::Dpm => {
                let grown = 1.0 / shrunk - 1.0;
                (-to.noise * (grown / h - 1.0), -to.noise * ((grown - h) / (h * h) - 0.5))
            }
            Algorithm::SdeDpmPlusPlus => {
                let lost = 1.0 - shrunk * shrunk;
                let bend = (lost - 2.0 * h) / (4.0 * h * h) - 0.5;
                (to.signal * (lost / (-2.0 * h) + 1.0), to.signal * bend)
            }
            Algorithm::SdeDpm => (-2.0 * to.noise * ((1.0 / shrunk - 1.0) / h - 1.0), 0.0),
        }
    }

    /// UniPC's predictor.
    fn predict(&self, index: usize, order: usize) -> Update {
        let base = UniBase::new(self, index);
        let mut update = base.update();
        if order > 1 {
            let distances = self.distances(index, order, base.h);
            let shares = match order {
                2 => vec![0.5],
                _ => solve(base.system(&distances, order - 1), base.targets(order - 1)),
            };
            base.add_slopes(&mut update, &distances, &shares);
        }
        update
    }

    /// UniPC's corrector of the latents at step `index`, by that step's own prediction; `None` where
    /// it is switched off.
    pub(super) fn correct(&self, index: usize, order: usize) -> Option<Correction> {
        let before = index.checked_sub(1)?;
        if !self.is_unipc || self.options.uncorrected.contains(&before) {
            return None;
        }
        let base = UniBase::new(self, before);
        let distances = self.distances(before, order, base.h);
        let shares = match order {
            1 => vec![0.5],
            _ => solve(base.system(&distances, order), base.targets(order)),
        };
        let mut update = base.update();
        base.add_slopes(&mut update, &distances, &shares[..order - 1]);
        let newest = base.scale * shares[order - 1];
        update.outputs[0] -= newest;
        Some(Correction { update, newest })
    }

    /// How far before step `index` the older predictions lie, in lengths of that step: negative.
    fn distances(&self, index: usize, order: usize, h: f64) -> Vec<f64> {
        (1..order).map(|back| -self.levels[index - back].until(self.levels[index]) / h).collect()
    }
}

/// UniPC's terms of one step that do not look back (Zhao et al. 2023, in the form of diffusers).
struct UniBase {
    h: f64,
    /// −h where the picture is predicted.
    signed: f64,
    /// e^signed − 1.
    grown: f64,
    /// B(h) in the paper.
    weight: f64,
    /// What the weighted derivatives count.
    scale: f64,
    latents: f64,
    newest: f64,
}

impl UniBase {
    fn new(solver: &Solver, index: usize) -> Self {
        let (from, to) = (solver.levels[index], solver.levels[index + 1]);
        let h = from.until(to);
        let shrunk = to.ratio / from.ratio;
        let (signed, grown) = match solver.options.predicts_picture {
            true => (-h, shrunk - 1.0),
            false => (h, 1.0 / shrunk - 1.0),
        };
        let weight = if solver.options.kind == SolverType::Bh1 { signed } else { grown };
        let (latents, part) = match solver.options.predicts_picture {
            true => (to.noise / from.noise, to.signal),
            false => (to.signal / from.signal, to.noise),
        };
        Self { h, signed, grown, weight, scale: -part * weight, latents, newest: -part * grown }
    }

    fn update(&self) -> Update {
        Update { latents: self.latents, outputs: [self.newest, 0.0, 0.0], noise: 0.0 }
    }

    /// Adds the differences between older predictions and the newest.
    fn add_slopes(&self, update: &mut Update, distances: &[f64], shares: &[f64]) {
        for (back, (distance, share)) in distances.iter().zip(shares).enumerate() {
            // A step of no length has nothing to add.
            let weight =
                if *distance < 0.0 && distance.is_finite() { self.scale * share / distance } else { 0.0 };
            update.outputs[back + 1] += weight;
            update.outputs[0] -= weight;
        }
    }

    /// The powers of the distances, 1 last, one row for each power below `size`.
    fn system(&self, distances: &[f64], size: usize) -> Vec<Vec<f64>> {
        let mut row = vec![1.0; size];
        let mut rows = Vec::with_capacity(size);
        for _ in 0..size {
            rows.push(row.clone());
            for (column, value) in row.iter_mut().enumerate() {
                *value *= distances.get(column).copied().unwrap_or(1.0);
            }
        }
        rows
    }

    /// k! · φ(k + 1) / B for k from 1.
    fn targets(&self, size: usize) -> Vec<f64> {
        let mut phi = self.grown / self.signed - 1.0;
        let mut factorial = 1.0;
        (1..=size)
            .map(|power| {
                let target = phi * factorial / self.weight;
                factorial *= (power + 1) as f64;
                phi = phi / self.signed - 1.0 / factorial;
                target
            })
            .collect()
    }
}

/// Solves a square system of at most [`MAX_ORDER`] equations.
fn solve(mut rows: Vec<Vec<f64>>, mut targets: Vec<f64>) -> Vec<f64> {
    let size = targets.len();
    for pivot in 0..size {
        let largest = (pivot..size)
            .max_by(|a, b| rows[*a][pivot].abs().total_cmp(&rows[*b][pivot].abs()))
            .unwrap_or(pivot);
        rows.swap(pivot, largest);
        targets.swap(pivot, largest);
        for row in pivot + 1..size {
            let factor = rows[row][pivot] / rows[pivot][pivot];
            let (above, below) = rows.split_at_mut(row);
            for (value, known) in below[0].iter_mut().zip(&above[pivot]).skip(pivot) {
                *value -= factor * known;
            }
            targets[row] -= factor * targets[pivot];
        }
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|column| rows[row][column] * targets[column]).sum();
        targets[row] = (targets[row] - known) / rows[row][row];
    }
    targets
}
