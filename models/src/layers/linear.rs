//! Linear maps of the last dimension.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::activation::{Activation, gelu_gate};
use super::host;
use super::product::{DenseRows, Epilogue, PackedMatrix, multiply};
use crate::weights::{Weights, WeightsResult};

/// `y = x · Wᵀ + b`.
pub(crate) enum Linear {
    Host {
        matrix: PackedMatrix,
        bias: Option<Vec<f32>>,
    },
    /// Weight `[inputs, outputs]`.
    Device {
        weight: Tensor,
        bias: Option<Tensor>,
    },
}

impl Linear {
    /// Reads `weight` `[outputs, inputs]` and `bias`.
    pub(crate) fn load(weights: &Weights, inputs: usize, outputs: usize) -> WeightsResult<Self> {
        Self::load_joined(std::slice::from_ref(weights), inputs, outputs, true)
    }

    /// As [`Linear::load`], without a bias.
    pub(crate) fn load_without_bias(weights: &Weights, inputs: usize, outputs: usize) -> WeightsResult<Self> {
        Self::load_joined(std::slice::from_ref(weights), inputs, outputs, false)
    }

    /// Joins maps of the same input into one whose output is theirs side by side, `outputs` each.
    pub(crate) fn load_joined(
        parts: &[Weights],
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> WeightsResult<Self> {
        let shapes = |weights: &Weights| {
            // A 1×1 convolution is a linear map of each pixel; older files keep it in that shape.
            match weights.shape("weight") {
                Some(shape) if shape == [outputs, inputs, 1, 1] => vec![outputs, inputs, 1, 1],
                _ => vec![outputs, inputs],
            }
        };
        if parts.iter().all(Weights::on_host) {
            let values = parts
                .iter()
                .map(|part| part.values("weight", &shapes(part)))
                .collect::<WeightsResult<Vec<_>>>()?;
            let matrix = PackedMatrix::pack(1, inputs, parts.len() * outputs, |_, input, output| {
                values[output / outputs][output % outputs * inputs + input]
            });
            let bias = if bias {
                Some(
                    parts
                        .iter()
                        .map(|part| part.values("bias", &[outputs]))
                        .collect::<WeightsResult<Vec<_>>>()?
                        .concat(),
                )
            } else {
                None
            };
            return Ok(Self::Host { matrix, bias });
        }
        let tensors = parts
            .iter()
            .map(|part| Ok(part.tensor("weight", &shapes(part))?.reshape((outputs, inputs))?))
            .collect::<WeightsResult<Vec<_>>>()?;
        let weight = Tensor::cat(&tensors, 0)?.t()?.contiguous()?;
        let bias = if bias {
            let biases = parts
                .iter()
                .map(|part| part.tensor("bias", &[outputs]))
                .collect::<WeightsResult<Vec<_>>>()?;
            Some(Tensor::cat(&biases, 0)?)
        } else {
            None
        };
        Ok(Self::Device { weight, bias })
    }

    /// Maps `[…, inputs]` to `[…, outputs]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.forward_with(input, None, None)
    }

    /// Then adds `residual`.
    pub(crate) fn forward_add(&self, input: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward_with(input, None, Some(residual))
    }

    /// Then applies `activation`.
    pub(crate) fn forward_activated(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        self.forward_with(input, Some(activation), None)
    }

    fn forward_with(
        &self,
        input: &Tensor,
        activation: Option<Activation>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let inputs = input.dim(D::Minus1)?;
        let rows = input.elem_count() / inputs.max(1);
        let mut shape = input.dims().to_vec();
        match self {
            Self::Host { matrix, bias } => {
                if inputs != matrix.depth() {
                    candle_core::bail!("a linear map of {} values got {:?}", matrix.depth(), input.shape());
                }
                let output = host::with_values(input, |values| {
                    host::with_optional_values(residual, |residual| {
                        let epilogue =
                            Epilogue { bias: bias.as_deref(), activation, residual, ..Epilogue::default() };
                        multiply(&DenseRows::new(values, inputs, inputs), rows, matrix, &epilogue)
                    })
                })??;
                if let Some(last) = shape.last_mut() {
                    *last = matrix.columns();
                }
                host::tensor(output, shape)
            }
            Self::Device { weight, bias } => {
                if let Some(last) = shape.last_mut() {
                    *last = weight.dim(1)?;
                }
                let mut output = input.reshape((rows, inputs))?.matmul(weight)?;
                if let Some(bias) = bias {
                    output = output.broadcast_add(bias)?;
                }
                if let Some(activation) = activation {
                    output = activation.forward(&output)?;
                }
                let output = output.reshape(shape)?;
                match residual {
                    Some(residual) => output + residual,
                    None => Ok(output),
                }
            }
        }
    }
}

/// A linear map whose output is gated by GELU of as many further outputs: diffusers' `GEGLU`.
pub(crate) struct GatedLinear {
    linear: Linear,
    outputs: usize,
}

impl GatedLinear {
    /// Reads `weight` `[2 · outputs, inputs]`, the gates' rows last, and `bias`.
    pub(crate) fn load(weights: &Weights, inputs: usize, outputs: usize) -> WeightsResult<Self> {
        Ok(Self { linear: Linear::load(weights, inputs, 2 * outputs)?, outputs })
    }

    /// Maps `[…, inputs]` to `[…, outputs]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let joined = self.linear.forward(input)?;
        if !host::is_host(&joined) {
            let hidden = joined.narrow(D::Minus1, 0, self.outputs)?;
            return hidden * joined.narrow(D::Minus1, self.outputs, self.outputs)?.gelu_erf()?;
        }
        let mut shape = joined.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.outputs;
        }
        let output = host::with_values(&joined, |joined| {
            let mut output = vec![0.0f32; joined.len() / 2];
            let rows = joined.par_chunks(2 * self.outputs).zip(output.par_chunks_mut(self.outputs));
            rows.with_min_len(GATED_ROWS).for_each(|(joined, output)| {
                let (hidden, gate) = joined.split_at(self.outputs);
                gelu_gate(hidden, gate, output);
            });
            output
        })?;
        host::tensor(output, shape)
    }
}

/// Rows of a gated map that one task takes at least.
const GATED_ROWS: usize = 16;
