//! Multi-head attention.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::activation::exp;
use super::host::{self, is_host};
use super::isa::for_each_isa;
use super::product::{DenseRows, Epilogue, PackedMatrix, Target, multiply_into};
use crate::device;

/// Queries whose scores are held at once by one task on the host.
const QUERY_BLOCK: usize = 64;
/// Scores held at once on a device, over all heads.
const DEVICE_SCORES: usize = 1 << 28;

/// Keys and values in the form that attention reads them, so that those of a prompt are prepared
/// once for all steps.
pub(crate) enum KeysValues {
    Host {
        /// One for each head of each batch entry: keys `[head size, tokens]`, values `[tokens, head size]`.
        heads: Vec<(PackedMatrix, PackedMatrix)>,
        tokens: usize,
        channels: usize,
        head_count: usize,
    },
    /// Keys `[batch, heads, head size, tokens]`, values `[batch, heads, tokens, head size]`.
    Device { keys: Tensor, values: Tensor },
}

/// Where the keys and values of some tokens lie.
#[derive(Clone, Copy)]
pub(crate) struct KeyValueColumns<'a> {
    /// `[batch, tokens, width]`.
    pub(crate) joined: &'a Tensor,
    /// The first column of the keys.
    pub(crate) keys: usize,
    /// The first column of the values.
    pub(crate) values: usize,
}

impl KeysValues {
    /// The tokens of each part in turn, with `channels` columns of keys and of values each.
    pub(crate) fn prepare_sequence(
        parts: &[KeyValueColumns],
        channels: usize,
        head_count: usize,
    ) -> Result<Self> {
        let columns = |part: &KeyValueColumns| {
            let keys = part.joined.narrow(2, part.keys, channels)?;
            Tensor::cat(&[keys, part.joined.narrow(2, part.values, channels)?], 2)
        };
        let parts = parts.iter().map(columns).collect::<Result<Vec<_>>>()?;
        Self::prepare(&Tensor::cat(&parts, 1)?, 0, channels, channels, head_count)
    }

    /// From a tensor `[batch, tokens, width]` whose columns hold the keys from `key_column` on and
    /// the values from `value_column` on, `channels` each.
    pub(crate) fn prepare(
        joined: &Tensor,
        key_column: usize,
        value_column: usize,
        channels: usize,
        head_count: usize,
    ) -> Result<Self> {
        let (batch, tokens, width) = joined.dims3()?;
        let size = channels / head_count;
        if !is_host(joined) {
            let split = |column| -> Result<Tensor> {
                joined.narrow(2, column, channels)?.reshape((batch, tokens, head_count, size))
            };
            return Ok(Self::Device {
                keys: split(key_column)?.permute((0, 2, 3, 1))?.contiguous()?,
                values: split(value_column)?.transpose(1, 2)?.contiguous()?,
            });
        }
        host::with_values(joined, |values| {
            let pack = |index: usize| {
                let rows = &values[index / head_count * tokens * width..][..tokens * width];
                let column = index % head_count * size;
                let keys = PackedMatrix::pack(1, size, tokens, |_, k, token| {
                    rows[token * width + key_column + column + k]
                });
                let values = PackedMatrix::pack(1, tokens, size, |_, token, k| {
                    rows[token * width + value_column + column + k]
                });
                (keys, values)
            };
            let heads = (0..batch * head_count).into_par_iter().map(pack).collect();
            Self::Host { heads, tokens, channels, head_count }
        })
    }
}

/// Softmax attention of the first `channels` columns of `queries`, `[batch, tokens, at least
/// channels]`, to `[batch, tokens, channels]`. If `causal`, the queries are the last of the tokens
/// that have keys, and a token sees itself and those before.
pub(crate) fn attend(queries: &Tensor, keys_values: &KeysValues, causal: bool) -> Result<Tensor> {
    match keys_values {
        KeysValues::Host { heads, tokens, channels, head_count } => {
            attend_host(queries, heads, *tokens, *channels, *head_count, causal)
        }
        KeysValues::Device { keys, values } => attend_device(queries, keys, values, causal),
    }
}

fn attend_host(
    queries: &Tensor,
    heads: &[(PackedMatrix, PackedMatrix)],
    keys: usize,
    channels: usize,
    head_count: usize,
    causal: bool,
) -> Result<Tensor> {
    let (batch, tokens, width) = queries.dims3()?;
    if batch * head_count != heads.len() || width < channels {
        candle_core::bail!("attention of {} heads got queries {:?}", heads.len(), queries.shape());
    }
    let size = channels / head_count;
    let factor = 1.0 / (size as f32).sqrt();
    let blocks = tokens.div_ceil(QUERY_BLOCK);
    let before = keys.saturating_sub(tokens);
    let mut output = vec![0.0f32; batch * tokens * channels];
    // SAFETY: the output outlives the tasks below and is not touched otherwise while they run.
    let target = unsafe { Target::new(output.as_mut_ptr(), channels) };
    host::with_values(queries, |values| {
        (0..batch * blocks * head_count).into_par_iter().for_each(|task| {
            let (image, block, head) =
                (task / (blocks * head_count), task / head_count % blocks, task % head_count);
            let (head_keys, head_values) = &heads[image * head_count + head];
            let first = block * QUERY_BLOCK;
            let rows = QUERY_BLOCK.min(tokens - first);
            let queries = &values[(image * tokens + first) * width + head * size..];
            let mut scores = vec![0.0f32; rows * keys];
            // SAFETY: the scores have a row for each query and a column for each key.
            unsafe {
                let scores = Target::new(scores.as_mut_ptr(), keys);
                multiply_into(
                    &DenseRows::new(queries, width, size),
                    rows,
                    head_keys,
                    &Epilogue::default(),
                    scores,
                );
            }
            let mut scale = [0.0f32; QUERY_BLOCK];
            for (row, (scores, scale)) in scores.chunks_exact_mut(keys).zip(&mut scale).enumerate() {
                let seen = if causal { (before + first + row + 1).min(keys) } else { keys };
                let (seen, unseen) = scores.split_at_mut(seen);
                *scale = 1.0 / exponentials(seen, factor);
                unseen.fill(0.0);
            }
            let epilogue = Epilogue { scale: Some(&scale), ..Epilogue::default() };
            // SAFETY: this task alone writes these rows and this head's columns.
            unsafe {
                let target = target.at(image * tokens + first, head * size);
                multiply_into(&DenseRows::new(&scores, keys, keys), rows, head_values, &epilogue, target);
            }
        });
    })?;
    host::tensor(output, (batch, tokens, channels))
}

for_each_isa! {
    /// Replaces each score by `e^(factor · (score − largest))` and returns their sum.
    fn exponentials(scores: &mut [f32], factor: f32) -> f32 {
        const LANES: usize = 16;
        let mut largest = [f32::NEG_INFINITY; LANES];
        for chunk in scores.chunks(LANES) {
            for (largest, score) in largest.iter_mut().zip(chunk) {
                *largest = if *score > *largest { *score } else { *largest };
            }
        }
        let largest = largest.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let mut sums = [0.0f32; LANES];
        let mut chunks = scores.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (sum, score) in sums.iter_mut().zip(chunk) {
                *score = exp(factor * (*score - largest));
                *sum += *score;
            }
        }
        for (sum, score) in sums.iter_mut().zip(chunks.into_remainder()) {
            *score = exp(factor * (*score - largest));
            *sum += *score;
        }
        sums.iter().sum()
    }
}

fn attend_device(queries: &Tensor, keys: &Tensor, values: &Tensor, causal: bool) -> Result<Tensor> {
    let (batch, heads, size, key_tokens) = keys.dims4()?;
    let (_, tokens, _) = queries.dims3()?;
    let queries =
        queries.narrow(2, 0, heads * size)?.reshape((batch, tokens, heads, size))?.transpose(1, 2)?;
    let factor = 1.0 / (size as f64).sqrt();
    let before = key_tokens.saturating_sub(tokens);
    let slice = |first: usize, rows: usize| {
        let queries = (queries.narrow(2, first, rows)?.contiguous()? * factor)?;
        let mut scores = queries.matmul(keys)?.to_dtype(DType::F32)?;
        if causal {
            let mask: Vec<f32> = (first..first + rows)
                .flat_map(|query| {
                    (0..key_tokens).map(move |key| if key > before + query { f32::NEG_INFINITY } else { 0.0 })
                })
                .collect();
            scores = scores.broadcast_add(&Tensor::from_vec(mask, (rows, key_tokens), scores.device())?)?;
        }
        candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(values.dtype())?.matmul(values)
    };
    let block = (DEVICE_SCORES / (batch * heads * key_tokens).max(1)).clamp(1, tokens.max(1));
    let outputs = in_slices(tokens, block, slice)?;
    Tensor::cat(&outputs, 2)?.transpose(1, 2)?.reshape((batch, tokens, heads * size))
}

/// Runs `slice`, of the first query and the number of queries, over all queries: `block` at once, and
/// fewer from where the device's memory is too short for that.
fn in_slices(
    queries: usize,
    mut block: usize,
    slice: impl Fn(usize, usize) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let mut outputs = Vec::new();
    let mut first = 0;
    while first < queries {
        let rows = block.min(queries - first);
        match slice(first, rows) {
            Ok(output) => {
                outputs.push(output);
                first += rows;
            }
            Err(error) if rows > 1 && device::is_out_of_memory(&error.to_string()) => {
                block = rows.div_ceil(2);
                tracing::debug!(block, "attention in smaller slices: the device's memory is short");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use candle_core::Device;

    use super::*;

    fn short_of_memory(most: usize, asked: &RefCell<Vec<usize>>) -> impl Fn(usize, usize) -> Result<Tensor> {
        move |first, rows| {
            asked.borrow_mut().push(rows);
            if rows > most {
                candle_core::bail!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")
            }
            Tensor::arange(first as u32, (first + rows) as u32, &Device::Cpu)
        }
    }

    #[test]
    fn slices_shrink_until_they_fit() {
        let asked = RefCell::default();
        let outputs = in_slices(23, 16, short_of_memory(5, &asked)).unwrap();
        let all: Vec<u32> = Tensor::cat(&outputs, 0).unwrap().to_vec1().unwrap();
        assert_eq!(all, (0..23).collect::<Vec<u32>>());
        assert_eq!(*asked.borrow(), [16, 8, 4, 4, 4, 4, 4, 3]);
    }

    #[test]
    fn memory_that_is_too_short_for_one_query_is_an_error() {
        let asked = RefCell::default();
        assert!(in_slices(9, 9, short_of_memory(0, &asked)).is_err());
        assert_eq!(asked.borrow().last(), Some(&1));
        let failing = |_, _| candle_core::bail!("shape mismatch");
        assert!(in_slices(9, 9, failing).unwrap_err().to_string().contains("shape mismatch"));
    }
}
