//! The memory of devices: how much of it is free, how much of that attention may take, and how its lack
//! is told from other failures.

use candle_core::{Device, Error};

/// What attention may hold of the memory that is free when a model is opened: one part in so many. The
/// rest is for weights and for the network's other activations.
const ATTENTION_PART: u64 = 8;
/// The most that attention may hold, in bytes: with more at once no device gets faster.
const MAX_ATTENTION_BYTES: u64 = 3 << 30;
/// The least, in bytes, below which slices would be too many; a device that is shorter of memory than that
/// gets smaller ones when it says so.
const MIN_ATTENTION_BYTES: u64 = 48 << 20;
/// What one score takes while its softmax is computed: twice in 32 bits, twice in 16.
const BYTES_PER_SCORE: u64 = 12;

/// How many scores attention may hold at once on a device with this many bytes free, or where nobody knows.
pub(crate) fn attention_scores(free: Option<u64>) -> usize {
    let bytes = free.map_or(MAX_ATTENTION_BYTES, |free| free / ATTENTION_PART);
    (bytes.clamp(MIN_ATTENTION_BYTES, MAX_ATTENTION_BYTES) / BYTES_PER_SCORE) as usize
}

/// Bytes that are free on a device, where it says so: the processor on Linux, and CUDA devices.
pub(crate) fn free(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => free_of_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let (free, _) = device.cuda_stream().context().mem_get_info().ok()?;
            Some(free as u64)
        }
        _ => None,
    }
}

/// What Linux says that programs may still take without swapping.
fn free_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What allocators say when they are out of memory, in lower case, where an error is no more than text.
const MESSAGES: [&str; 4] =
    ["out of memory", "out_of_memory", "outofmemory", "failed to create metal resource"];

/// Whether a device failed for lack of memory.
pub(crate) fn is_short(error: &Error) -> bool {
    match error {
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } | Error::WithPath { inner, .. } => {
            is_short(inner)
        }
        #[cfg(feature = "cuda")]
        Error::Cuda(error) if error.is::<candle_core::cuda::CudaError>() => {
            error.downcast_ref().is_some_and(is_cuda_short)
        }
        Error::Cuda(_)
        | Error::Metal(_)
        | Error::Msg(_)
        | Error::Wrapped(_)
        | Error::WrappedContext { .. } => {
            let message = error.to_string().to_lowercase();
            MESSAGES.iter().any(|known| message.contains(known))
        }
        _ => false,
    }
}

#[cfg(feature = "cuda")]
fn is_cuda_short(error: &candle_core::cuda::CudaError) -> bool {
    use candle_core::cuda::CudaError;
    use candle_core::cuda::cudarc::cublas::sys::cublasStatus_t;
    use candle_core::cuda::cudarc::driver::sys::CUresult;
    match error {
        CudaError::Cuda(error) | CudaError::Load { cuda: error, .. } => {
            error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
        }
        CudaError::Cublas(error) => error.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_memory_of_linux_is_read() {
        let text =
            "MemTotal:       24684352 kB\nMemFree:  9 kB\nMemAvailable:   21829012 kB\nBuffers: 1 kB\n";
        assert_eq!(free_of_meminfo(text), Some(21_829_012 * 1024));
        for text in ["", "MemAvailable: x kB", "MemAvailable: 5", "MemAvailable: 18446744073709551615 kB"] {
            assert_eq!(free_of_meminfo(text), None, "{text}");
        }
        #[cfg(target_os = "linux")]
        assert!(free(&Device::Cpu).unwrap() > 1 << 20);
    }

    #[test]
    fn attention_gets_its_part_within_bounds() {
        assert_eq!(attention_scores(Some(0)), (48 << 20) / 12);
        assert_eq!(attention_scores(Some(8 << 30)), (1 << 30) / 12);
        assert_eq!(attention_scores(Some(u64::MAX)), attention_scores(None));
        assert_eq!(attention_scores(None), 1 << 28);
    }

    #[test]
    fn lack_of_memory_is_told_from_other_failures() {
        let message = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        let wrapped = Error::Cuda(message.into()).context("conv2d").with_path("unet");
        for error in [Error::msg("Out of Memory"), Error::Cuda(message.into()), wrapped] {
            assert!(is_short(&error), "{error}");
        }
        let path = Error::UnwrapNone.with_path("out of memory");
        for error in [Error::msg("shape mismatch"), Error::Cuda("no device".into()), path] {
            assert!(!is_short(&error), "{error}");
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn drivers_errors_are_known_by_their_types() {
        use candle_core::cuda::CudaError;
        use candle_core::cuda::cudarc::driver::{DriverError, sys::CUresult};
        let of = |code| Error::Cuda(Box::new(CudaError::Cuda(DriverError(code))));
        assert!(is_short(&of(CUresult::CUDA_ERROR_OUT_OF_MEMORY)));
        assert!(!is_short(&of(CUresult::CUDA_ERROR_INVALID_VALUE)));
    }
}
