//! Multi-head attention.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::activation::exp;
use super::host::{self, is_host};
use super::isa::for_each_isa;
use super::product::{DenseRows, Epilogue, PackedMatrix, Target, multiply_into};
use crate::memory;
use crate::weights::Weights;

/// Queries whose scores are held at once by one task on the host.
const QUERY_BLOCK: usize = 64;

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
    /// `scores`: how many may be held at once, over all heads.
    Device { keys: Tensor, values: Tensor, scores: usize },
    /// Keys and values `[batch, tokens, heads, head size]`, for flash attention.
    #[cfg(feature = "flash-attn")]
    Flash { keys: Tensor, values: Tensor },
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

/// How the channels of an attention are shared out to heads, and how it is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    channels: usize,
    count: usize,
    scores: usize,
    #[cfg(feature = "flash-attn")]
    kernel: crate::registry::Attention,
}

impl Heads {
    /// Of an attention among `weights`. `count` must divide `channels`.
    pub(crate) fn new(weights: &Weights, channels: usize, count: usize) -> Self {
        Self {
            channels,
            count,
            scores: weights.compute().attention_scores,
            #[cfg(feature = "flash-attn")]
            kernel: weights.compute().attention,
        }
    }

    /// Attention of tokens to each other, from their queries, keys and values side by side,
    /// `[batch, tokens, 3 · channels]`, to `[batch, tokens, channels]`. If `causal`, a token sees itself
    /// and those before.
    pub(crate) fn attend_within(self, joined: &Tensor, causal: bool) -> Result<Tensor> {
        let columns = KeyValueColumns { joined, keys: self.channels, values: 2 * self.channels };
        attend(joined, &self.prepare(columns)?, causal)
    }

    /// The tokens of each part in turn.
    pub(crate) fn prepare_sequence(self, parts: &[KeyValueColumns]) -> Result<KeysValues> {
        let columns = |part: &KeyValueColumns| {
            let keys = part.joined.narrow(2, part.keys, self.channels)?;
            Tensor::cat(&[keys, part.joined.narrow(2, part.values, self.channels)?], 2)
        };
        let parts = parts.iter().map(columns).collect::<Result<Vec<_>>>()?;
        let joined = Tensor::cat(&parts, 1)?;
        self.prepare(KeyValueColumns { joined: &joined, keys: 0, values: self.channels })
    }

    pub(crate) fn prepare(self, columns: KeyValueColumns) -> Result<KeysValues> {
        let KeyValueColumns { joined, keys, values } = columns;
        let (batch, tokens, width) = joined.dims3()?;
        let size = self.channels / self.count;
        if !is_host(joined) {
            let split = |column| -> Result<Tensor> {
                joined.narrow(2, column, self.channels)?.reshape((batch, tokens, self.count, size))
            };
            #[cfg(feature = "flash-attn")]
            if self.is_flash(joined.dtype()) {
                let (keys, values) = (split(keys)?.contiguous()?, split(values)?.contiguous()?);
                return Ok(KeysValues::Flash { keys, values });
            }
            return Ok(KeysValues::Device {
                keys: split(keys)?.permute((0, 2, 3, 1))?.contiguous()?,
                values: split(values)?.transpose(1, 2)?.contiguous()?,
                scores: self.scores,
            });
        }
        host::with_values(joined, |joined| {
            let pack = |index: usize| {
                let rows = &joined[index / self.count * tokens * width..][..tokens * width];
                let column = index % self.count * size;
                let keys = PackedMatrix::pack(1, size, tokens, |_, k, token| {
                    rows[token * width + keys + column + k]
                });
                let values = PackedMatrix::pack(1, tokens, size, |_, token, k| {
                    rows[token * width + values + column + k]
                });
                (keys, values)
            };
            let heads = (0..batch * self.count).into_par_iter().map(pack).collect();
            KeysValues::Host { heads, tokens, channels: self.channels, head_count: self.count }
        })
    }

    /// Whether flash attention takes these heads: it has kernels for 16-bit numbers and small heads; an
    /// autoencoder's one head of all channels is not among them, nor one that is kept in f32.
    #[cfg(feature = "flash-attn")]
    fn is_flash(self, dtype: DType) -> bool {
        const LARGEST_HEAD: usize = 256;
        let size = self.channels / self.count;
        self.kernel == crate::registry::Attention::Flash
            && matches!(dtype, DType::F16 | DType::BF16)
            && size <= LARGEST_HEAD
            && size.is_multiple_of(8)
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
        KeysValues::Device { keys, values, scores } => attend_device(queries, keys, values, *scores, causal),
        #[cfg(feature = "flash-attn")]
        KeysValues::Flash { keys, values } => attend_flash(queries, keys, values, causal),
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

#[cfg(feature = "flash-attn")]
fn attend_flash(queries: &Tensor, keys: &Tensor, values: &Tensor, causal: bool) -> Result<Tensor> {
    let (batch, _, heads, size) = keys.dims4()?;
    let (_, tokens, _) = queries.dims3()?;
    let queries = queries.narrow(2, 0, heads * size)?.reshape((batch, tokens, heads, size))?.contiguous()?;
    let factor = 1.0 / (size as f32).sqrt();
    candle_flash_attn::flash_attn(&queries, keys, values, factor, causal)?.reshape((
        batch,
        tokens,
        heads * size,
    ))
}

fn attend_device(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    scores: usize,
    causal: bool,
) -> Result<Tensor> {
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
    let block = (scores / (batch * heads * key_tokens).max(1)).clamp(1, tokens.max(1));
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
            Err(error) if rows > 1 && memory::is_short(&error) => {
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
    fn a_small_budget_changes_slices_and_no_more() {
        let random = |seed, shape: &[usize]| {
            let values = crate::noise::normal(seed, 0, shape.iter().product());
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
        };
        let (queries, keys) = (random(1, &[2, 7, 12]), random(2, &[2, 3, 4, 9]));
        let values = random(3, &[2, 3, 9, 4]);
        for causal in [false, true] {
            let attend = |scores| {
                let attended = attend_device(&queries, &keys, &values, scores, causal).unwrap();
                attended.flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            let whole = attend(usize::MAX);
            for scores in [0, 2 * 3 * 9, 4 * 2 * 3 * 9 + 1] {
                for (whole, sliced) in whole.iter().zip(attend(scores)) {
                    assert!((whole - sliced).abs() < 1e-6, "{scores} scores: {whole} or {sliced}");
                }
            }
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
