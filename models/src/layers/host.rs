//! Access to tensors that lie in main memory as 32-bit floats, which have kernels of their own.
//!
//! Every other tensor (another device, another number format) goes through candle's operations.

use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor};

/// Whether the processor's own kernels take this tensor.
pub(crate) fn is_host(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// Calls `body` with the values of a host tensor in row-major order.
pub(crate) fn with_values<R>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        candle_core::bail!(
            "a tensor of 32-bit floats in main memory is needed, not {:?} on {:?}",
            tensor.dtype(),
            tensor.device()
        );
    };
    let start = layout.start_offset();
    Ok(body(&values[start..start + layout.shape().elem_count()]))
}

/// Calls `body` with the values of an optional host tensor.
pub(crate) fn with_optional_values<R>(
    tensor: Option<&Tensor>,
    body: impl FnOnce(Option<&[f32]>) -> R,
) -> Result<R> {
    match tensor {
        Some(tensor) => with_values(tensor, |values| body(Some(values))),
        None => Ok(body(None)),
    }
}

/// A tensor of these values.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// A new tensor of the same shape, changed in place by `body`.
pub(crate) fn map(input: &Tensor, body: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let mut values = with_values(input, <[f32]>::to_vec)?;
    body(&mut values);
    tensor(values, input.shape())
}
