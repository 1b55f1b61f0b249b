//! Layers of neural networks, each with one interface and two ways to compute it: kernels of our
//! own for 32-bit floats on the processor, candle's operations for any other device or format.
//!
//! Invariant: on the processor the bits of a result depend neither on the number of threads nor on
//! the instruction set, so that honest nodes agree exactly. Work runs in the current rayon pool.

pub(crate) mod activation;
pub(crate) mod attention;
mod conv;
mod feature_map;
mod host;
mod interpolate;
pub(crate) mod isa;
mod kernel;
mod linear;
mod norm;
pub(crate) mod product;
mod rectifier;
mod shuffle;

pub(crate) use activation::Activation;
pub(crate) use conv::{Conv2d, ConvExtras, Window};
pub(crate) use feature_map::{Extent, FeatureMap};
pub(crate) use interpolate::Interpolation;
pub(crate) use linear::{GatedLinear, Linear};
pub(crate) use norm::{GroupNorm, LayerNorm, SpatialNorm};
pub(crate) use rectifier::Rectifier;
pub(crate) use shuffle::{pixel_shuffle, pixel_unshuffle};
