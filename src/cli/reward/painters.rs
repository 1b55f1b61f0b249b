//! Miners' models, the honest ones and those that save work.

use std::ops::ControlFlow;

use argus_models::{
    DeviceKind, Generate, ModelFiles, Pipeline, Placement, RgbPicture, WeightChange,
    registry::{Numerics, Precision},
};

/// How far another checkpoint of the architecture lies off, as a share of the weights; three of them.
const CHECKPOINTS: [f32; 3] = [0.02, 0.05, 0.1];
/// Names the noise of those.
const CHECKPOINT_SEED: u64 = 23;

/// One model in all the ways that it is computed.
pub(super) struct Painters {
    /// In f32, whose sums are portable.
    exact: Pipeline,
    /// The same on more threads.
    threaded: Pipeline,
    f16: Pipeline,
    bf16: Pipeline,
    int8: Pipeline,
    int4: Pipeline,
    checkpoints: [Pipeline; CHECKPOINTS.len()],
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Painter {
    Honest(Precision),
    Threaded,
    Int8,
    Int4,
    /// Which, counted around.
    Checkpoint(usize),
}

impl Painters {
    pub(super) fn open(files: &ModelFiles, threads: usize) -> anyhow::Result<Self> {
        let open = |files: &ModelFiles, numerics, threads| {
            Pipeline::open(files, Placement::new(DeviceKind::Cpu, numerics), threads)
        };
        let changed = |change| open(&files.with_change(change), Numerics::PORTABLE_F32, threads);
        let checkpoint = |place: usize| {
            let (share, seed) = (CHECKPOINTS[place], CHECKPOINT_SEED + place as u64);
            changed(WeightChange::Disturbed { share, seed })
        };
        Ok(Self {
            exact: open(files, Numerics::PORTABLE_F32, threads)?,
            threaded: open(files, Numerics::PORTABLE_F32, threads + 2)?,
            f16: open(files, Numerics::DEVICE_F16, threads)?,
            bf16: open(files, Numerics::DEVICE_BF16, threads)?,
            int8: changed(WeightChange::Int8)?,
            int4: changed(WeightChange::Int4)?,
            checkpoints: [checkpoint(0)?, checkpoint(1)?, checkpoint(2)?],
        })
    }

    fn pipeline(&self, painter: Painter) -> &Pipeline {
        match painter {
            Painter::Honest(Precision::F32) => &self.exact,
            Painter::Honest(Precision::F16) => &self.f16,
            Painter::Honest(Precision::Bf16) => &self.bf16,
            Painter::Threaded => &self.threaded,
            Painter::Int8 => &self.int8,
            Painter::Int4 => &self.int4,
            Painter::Checkpoint(which) => &self.checkpoints[which % CHECKPOINTS.len()],
        }
    }

    /// The edge of the pictures that the model was trained on.
    pub(super) fn edge(&self) -> u32 {
        self.exact.default_edge() as u32
    }

    /// Half of that, if the model makes pictures of it.
    pub(super) fn half_edge(&self) -> Option<u32> {
        let half = self.exact.default_edge() / 2;
        half.is_multiple_of(self.exact.edge_multiple()).then_some(half as u32).filter(|half| *half > 0)
    }

    pub(super) fn paint(&self, painter: Painter, request: &Generate) -> anyhow::Result<RgbPicture> {
        let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
        Ok(self.pipeline(painter).generate(request, go_on)?)
    }
}
