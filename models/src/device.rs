//! The devices that models run on.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::memory;
use crate::registry::Numerics;

/// A processor or an accelerator of this machine: `cpu`, `cuda`, `cuda:1`, `metal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its ordinal.
    Cuda(usize),
    /// An Apple GPU by its ordinal.
    Metal(usize),
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("`{0}` is no device; write cpu, cuda, cuda:N, metal or metal:N")]
    Unknown(String),
    #[error("this build cannot use {kind}; build it with `--features {feature}`")]
    NotBuiltIn { kind: DeviceKind, feature: &'static str },
    #[error("cannot open {kind}: {source}")]
    Unavailable { kind: DeviceKind, source: candle_core::Error },
    #[error("{kind} does not compute in {numerics}: {mend}")]
    Numerics { kind: DeviceKind, numerics: Numerics, mend: &'static str },
}

impl DeviceError {
    /// A stable label for metrics and programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown_device",
            Self::NotBuiltIn { .. } => "device_not_built_in",
            Self::Unavailable { .. } => "device_unavailable",
            Self::Numerics { .. } => "numerics_not_there",
        }
    }
}

impl DeviceKind {
    /// Opens the device.
    pub fn open(self) -> Result<Device, DeviceError> {
        let unavailable = |source| DeviceError::Unavailable { kind: self, source };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => {
                Err(DeviceError::NotBuiltIn { kind: self, feature: "cuda" })
            }
            Self::Metal(_) if !cfg!(feature = "metal") => {
                Err(DeviceError::NotBuiltIn { kind: self, feature: "metal" })
            }
            Self::Cuda(ordinal) => Device::new_cuda(ordinal).map_err(unavailable),
            Self::Metal(ordinal) => Device::new_metal(ordinal).map_err(unavailable),
        }
    }

    /// Bytes that are free on the device, where it says so: the processor on Linux, and CUDA devices.
    pub fn free_memory(self) -> Result<Option<u64>, DeviceError> {
        Ok(memory::free(&self.open()?))
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(ordinal) => write!(formatter, "cuda:{ordinal}"),
            Self::Metal(ordinal) => write!(formatter, "metal:{ordinal}"),
        }
    }
}

impl FromStr for DeviceKind {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        let (name, ordinal) = match text.split_once(':') {
            Some((name, ordinal)) => (name, ordinal.parse().map_err(|_| unknown())?),
            None => (text, 0),
        };
        match name {
            "cpu" if name == text => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(ordinal)),
            "metal" => Ok(Self::Metal(ordinal)),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for (text, kind) in [
            ("cpu", DeviceKind::Cpu),
            ("cuda:0", DeviceKind::Cuda(0)),
            ("cuda:3", DeviceKind::Cuda(3)),
            ("metal:0", DeviceKind::Metal(0)),
        ] {
            assert_eq!(text.parse::<DeviceKind>().unwrap(), kind);
            assert_eq!(kind.to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceKind>().unwrap(), DeviceKind::Cuda(0));
        for text in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1"] {
            assert_eq!(text.parse::<DeviceKind>().unwrap_err().reason(), "unknown_device", "{text}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_built_in_says_how_to_get_it() {
        let error = DeviceKind::Cuda(0).open().unwrap_err();
        assert_eq!(error.reason(), "device_not_built_in");
        assert!(error.to_string().contains("--features cuda"));
    }
}
