//! The network of the prior: diffusers' `PriorTransformer` (unCLIP, Ramesh et al. 2022), which
//! predicts the embedding of a picture that a text describes.
//!
//! A sequence is the text, its pooled embedding, the timestep, the noisy embedding and a token of
//! its own, at which the prediction is read; a token sees itself and those before it. So what the
//! text means to later tokens does not change from step to step: [`PriorTransformer::prepare`]
//! computes it once, and a step computes the last three tokens alone. The padding of a text is seen
//! by no token in the reference, and is left out here.

use candle_core::{IndexOp, Result, Tensor};

use super::config::PriorConfig;
use crate::diffusion::embeddings::{Sinusoids, TimeEmbedding};
use crate::layers::attention::{Heads, KeyValueColumns, attend};
use crate::layers::{Activation, LayerNorm, Linear};
use crate::weights::{Weights, WeightsResult};

const LAYER_NORM_EPSILON: f64 = 1e-5;
/// Width of the hidden layer over that of a token.
const EXPANSION: usize = 4;
/// Tokens that a step computes.
const STEP_TOKENS: usize = 3;

/// A text as the layers see it from later tokens, in the order of the layers: queries, keys and
/// values of its tokens side by side, `[1, tokens, 3 · width]`.
pub(super) struct PreparedText(Vec<Tensor>);

/// What the text encoder says of one text.
pub(super) struct EncodedText {
    /// From the start token to the end token, `[1, tokens, channels]`.
    pub(super) hidden: Tensor,
    /// `[1, channels]`.
    pub(super) pooled: Tensor,
}

pub(super) struct PriorTransformer {
    time: TimeEmbedding,
    latents: Linear,
    pooled_norm: Option<LayerNorm>,
    pooled: Linear,
    text: Linear,
    /// `[1, window + 4, width]`.
    positions: Tensor,
    /// `[1, 1, width]`.
    last_token: Tensor,
    input_norm: Option<LayerNorm>,
    layers: Vec<Layer>,
    output_norm: LayerNorm,
    output: Linear,
    window: usize,
    embedding_width: usize,
}

impl PriorTransformer {
    pub(super) fn load(weights: &Weights, config: &PriorConfig) -> WeightsResult<Self> {
        let (width, embedding, pooled) = (config.width(), config.embedding_dim, config.pooled_width());
        let window = config.num_embeddings;
        let sinusoids = Sinusoids { channels: width, cosines_first: true, shift: 0.0 };
        let norm = |name: &str, channels| LayerNorm::load(&weights.at(name), channels, LAYER_NORM_EPSILON);
        let optional = |wanted: bool, name: &str, channels| wanted.then(|| norm(name, channels)).transpose();
        let linear = |name: &str, inputs, outputs| Linear::load(&weights.at(name), inputs, outputs);
        let layer = |index| {
            Layer::load(&weights.at(format!("transformer_blocks.{index}")), width, config.num_attention_heads)
        };
        Ok(Self {
            time: TimeEmbedding::load(&weights.at("time_embedding"), sinusoids, config.time_width(), width)?,
            latents: linear("proj_in", embedding, width)?,
            pooled_norm: optional(config.norms_pooled(), "embedding_proj_norm", pooled)?,
            pooled: linear("embedding_proj", pooled, width)?,
            text: linear("encoder_hidden_states_proj", embedding, width)?,
            positions: weights.tensor("positional_embedding", &[1, window + 1 + STEP_TOKENS, width])?,
            last_token: weights.tensor("prd_embedding", &[1, 1, width])?,
            input_norm: optional(config.norms_input(), "norm_in", width)?,
            layers: (0..config.num_layers).map(layer).collect::<WeightsResult<_>>()?,
            output_norm: norm("norm_out", width)?,
            output: linear("proj_to_clip_embeddings", width, embedding)?,
            window,
            embedding_width: embedding,
        })
    }

    /// Values in an embedding.
    pub(super) fn embedding_width(&self) -> usize {
        self.embedding_width
    }

    /// Computes what a text means to all steps. It has at most as many tokens as the window.
    pub(super) fn prepare(&self, text: &EncodedText) -> Result<PreparedText> {
        let count = text.hidden.dim(1)?;
        if count > self.window {
            candle_core::bail!("a text of {count} tokens does not fit a prior of {}", self.window);
        }
        let pooled = match &self.pooled_norm {
            Some(norm) => self.pooled.forward(&norm.forward(&text.pooled)?)?,
            None => self.pooled.forward(&text.pooled)?,
        };
        let hidden = self.text.forward(&text.hidden)?;
        let (places, place) =
            (self.positions.narrow(1, 0, count)?, self.positions.narrow(1, self.window, 1)?);
        let tokens = Tensor::cat(&[hidden, pooled.unsqueeze(1)?], 1)?;
        let mut tokens = self.normalise((tokens + Tensor::cat(&[places, place], 1)?)?)?;
        let mut joined = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let projected = layer.project(&tokens)?;
            let attended = layer.attend(&projected, None)?;
            tokens = layer.finish(&tokens, &attended)?;
            joined.push(projected);
        }
        Ok(PreparedText(joined))
    }

    /// Predicts an embedding from each of the noisy ones, `[embeddings, width]`, by its text.
    pub(super) fn forward(&self, latents: &Tensor, timestep: f64, texts: &[&PreparedText]) -> Result<Tensor> {
        let count = latents.dim(0)?;
        if count != texts.len() || texts.iter().any(|text| text.0.len() != self.layers.len()) {
            candle_core::bail!("{count} embeddings do not fit {} texts", texts.len());
        }
        let time = self.time.forward(timestep, latents)?;
        let width = time.dim(1)?;
        let same_for_all = |token: &Tensor| token.broadcast_as((count, 1, width))?.contiguous();
        let latents = self.latents.forward(latents)?.unsqueeze(1)?;
        let tokens = [same_for_all(&time.unsqueeze(1)?)?, latents, same_for_all(&self.last_token)?];
        let places = self.positions.narrow(1, self.window + 1, STEP_TOKENS)?;
        let mut tokens = self.normalise(Tensor::cat(&tokens, 1)?.broadcast_add(&places)?)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let projected = layer.project(&tokens)?;
            let attended = texts
                .iter()
                .enumerate()
                .map(|(row, text)| layer.attend(&projected.narrow(0, row, 1)?, Some(&text.0[index])))
                .collect::<Result<Vec<_>>>()?;
            tokens = layer.finish(&tokens, &Tensor::cat(&attended, 0)?)?;
        }
        let last = tokens.i((.., STEP_TOKENS - 1))?.contiguous()?;
        self.output.forward(&self.output_norm.forward(&last)?)
    }

    fn normalise(&self, tokens: Tensor) -> Result<Tensor> {
        match &self.input_norm {
            Some(norm) => norm.forward(&tokens),
            None => Ok(tokens),
        }
    }
}

struct Layer {
    attention_norm: LayerNorm,
    queries_keys_values: Linear,
    attention_out: Linear,
    feed_norm: LayerNorm,
    feed_in: Linear,
    feed_out: Linear,
    width: usize,
    heads: Heads,
}

impl Layer {
    fn load(weights: &Weights, width: usize, heads: usize) -> WeightsResult<Self> {
        let norm = |name: &str| LayerNorm::load(&weights.at(name), width, LAYER_NORM_EPSILON);
        let joined = ["to_q", "to_k", "to_v"].map(|name| weights.at("attn1").at(name));
        Ok(Self {
            attention_norm: norm("norm1")?,
            queries_keys_values: Linear::load_joined(&joined, width, width, true)?,
            attention_out: Linear::load(&weights.at("attn1.to_out.0"), width, width)?,
            feed_norm: norm("norm3")?,
            feed_in: Linear::load(&weights.at("ff.net.0.proj"), width, EXPANSION * width)?,
            feed_out: Linear::load(&weights.at("ff.net.2"), EXPANSION * width, width)?,
            width,
            heads: Heads::new(weights, width, heads),
        })
    }

    /// Queries, keys and values side by side.
    fn project(&self, tokens: &Tensor) -> Result<Tensor> {
        self.queries_keys_values.forward(&self.attention_norm.forward(tokens)?)
    }

    /// Attention of projected tokens to those `before` them and to each other.
    fn attend(&self, projected: &Tensor, before: Option<&Tensor>) -> Result<Tensor> {
        let columns = |joined| KeyValueColumns { joined, keys: self.width, values: 2 * self.width };
        let parts: Vec<_> = before.into_iter().chain([projected]).map(columns).collect();
        attend(projected, &self.heads.prepare_sequence(&parts)?, true)
    }

    fn finish(&self, tokens: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let tokens = self.attention_out.forward_add(attended, tokens)?;
        let hidden = self.feed_in.forward_activated(&self.feed_norm.forward(&tokens)?, Activation::Gelu)?;
        self.feed_out.forward_add(&hidden, &tokens)
    }
}
