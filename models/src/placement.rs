//! Where a model is computed, and in which numbers.
//!
//! Invariant: a model computes as its [`Numerics`] say, or it is not opened.

use candle_core::{DType, Device, Result, Shape, Tensor};

use crate::device::{DeviceError, DeviceKind};
use crate::memory;
use crate::registry::{Attention, Numerics, Precision};

/// A device, and the numerics that a model computes in on it.
///
/// The processor computes in all but flash attention: in f32 with kernels of this crate, whose sums are
/// portable, and in f16 and bf16 with candle's, which are slow there but what an accelerator's honest
/// answers look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub device: DeviceKind,
    pub numerics: Numerics,
}

impl From<DeviceKind> for Placement {
    /// What a device is best at: f32 on the processor, to the bit; f16 on accelerators.
    fn from(device: DeviceKind) -> Self {
        let numerics = match device {
            DeviceKind::Cpu => Numerics::PORTABLE_F32,
            DeviceKind::Cuda(_) | DeviceKind::Metal(_) => Numerics::DEVICE_F16,
        };
        Self { device, numerics }
    }
}

impl Placement {
    pub const fn new(device: DeviceKind, numerics: Numerics) -> Self {
        Self { device, numerics }
    }

    /// Where a node with this device computes a model of these numerics: on the processor where only that
    /// has them, since an answer in others would not be the one that is asked for.
    pub fn of_model(device: DeviceKind, numerics: Numerics) -> Self {
        match numerics.attention {
            Attention::Portable => Self::new(DeviceKind::Cpu, numerics),
            Attention::Device | Attention::Flash => Self::new(device, numerics),
        }
    }

    /// Opens the device, if it has these numerics.
    pub(crate) fn open(self) -> std::result::Result<Compute, DeviceError> {
        let Self { device: kind, numerics } = self;
        let refused = |mend| Err(DeviceError::Numerics { kind, numerics, mend });
        if let Err(mend) = numerics.check() {
            return refused(mend);
        }
        match (numerics.attention, kind) {
            (Attention::Portable, DeviceKind::Cuda(_) | DeviceKind::Metal(_)) => {
                return refused("only processors sum in one order; use cpu, or numerics = \"device-f16\"");
            }
            (Attention::Flash, DeviceKind::Cpu | DeviceKind::Metal(_)) => {
                return refused("flash attention is for CUDA devices; use attention = \"device\"");
            }
            (Attention::Flash, DeviceKind::Cuda(_)) if !cfg!(feature = "flash-attn") => {
                return refused("build with `--features flash-attn`, or use attention = \"device\"");
            }
            _ => {}
        }
        let dtype = match numerics.dtype {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        };
        let device = kind.open()?;
        let attention_scores = memory::attention_scores(memory::free(&device));
        Ok(Compute { device, dtype, attention: numerics.attention, attention_scores })
    }
}

/// A device that is open, and how layers compute on it.
#[derive(Debug, Clone)]
pub(crate) struct Compute {
    pub(crate) device: Device,
    /// Of weights and activations.
    pub(crate) dtype: DType,
    #[cfg_attr(not(feature = "flash-attn"), expect(dead_code, reason = "there is no other choice"))]
    pub(crate) attention: Attention,
    /// How many scores an attention may hold at once, where it is computed by a device's kernels.
    pub(crate) attention_scores: usize,
}

impl Compute {
    /// The processor in f32, with the kernels of this crate.
    pub(crate) const HOST: Self = Self {
        device: Device::Cpu,
        dtype: DType::F32,
        attention: Attention::Portable,
        attention_scores: usize::MAX,
    };

    /// The same device in another number format.
    pub(crate) fn in_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// Whether layers use the kernels of this crate.
    pub(crate) fn is_host(&self) -> bool {
        self.device.is_cpu() && self.dtype == DType::F32
    }

    /// Values, row-major, as a tensor on the device.
    pub(crate) fn tensor(&self, values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
        Tensor::from_vec(values, shape.into(), &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLASH: Numerics = Numerics { attention: Attention::Flash, ..Numerics::DEVICE_BF16 };

    #[test]
    fn numerics_that_a_device_has_not_are_refused_with_what_to_do() {
        let portable_half = Numerics { dtype: Precision::F16, ..Numerics::PORTABLE_F32 };
        for (device, numerics, mend) in [
            (DeviceKind::Cuda(0), Numerics::PORTABLE_F32, "use cpu"),
            (DeviceKind::Metal(0), Numerics::PORTABLE_F32, "device-f16"),
            (DeviceKind::Cpu, FLASH, "attention = \"device\""),
            (DeviceKind::Metal(0), FLASH, "CUDA"),
            #[cfg(not(feature = "flash-attn"))]
            (DeviceKind::Cuda(0), FLASH, "--features flash-attn"),
            (DeviceKind::Cpu, portable_half, "f32"),
        ] {
            let error = Placement::new(device, numerics).open().unwrap_err();
            assert_eq!(error.reason(), "numerics_not_there", "{error}");
            assert!(error.to_string().contains(mend), "{error}");
        }
    }

    #[test]
    fn a_precision_decides_the_number_format() {
        let device_f32 = Numerics { attention: Attention::Device, ..Numerics::PORTABLE_F32 };
        for (numerics, dtype) in [
            (Numerics::PORTABLE_F32, DType::F32),
            (device_f32, DType::F32),
            (Numerics::DEVICE_F16, DType::F16),
            (Numerics::DEVICE_BF16, DType::BF16),
        ] {
            assert_eq!(Placement::new(DeviceKind::Cpu, numerics).open().unwrap().dtype, dtype);
        }
    }

    #[test]
    fn a_portable_model_is_computed_on_the_processor() {
        let cuda = DeviceKind::Cuda(1);
        assert_eq!(Placement::of_model(cuda, Numerics::PORTABLE_F32).device, DeviceKind::Cpu);
        assert_eq!(Placement::of_model(cuda, Numerics::DEVICE_F16).device, cuda);
        assert_eq!(Placement::of_model(cuda, FLASH), Placement::new(cuda, FLASH));
    }
}
