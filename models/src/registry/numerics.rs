//! How exactly two honest answers agree: what a model is computed with.

use std::fmt;

use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

/// Number format of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    F16,
    Bf16,
}

/// How attention and the other sums are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    /// In one order on every processor and any number of threads.
    Portable,
    /// As the device's own kernels do it; those of a processor are the portable ones in f32.
    Device,
    /// Flash attention (Dao et al. 2022), in tiles.
    Flash,
}

/// Where noise comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Noise {
    /// [`crate::noise`], on every device.
    #[default]
    #[serde(rename = "philox4x32-10")]
    Philox,
}

/// A numerics profile. A registry writes it as a name, `portable-f32`, or as a table,
/// `{ dtype = "bf16", attention = "flash" }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Numerics {
    pub dtype: Precision,
    pub attention: Attention,
    pub noise: Noise,
}

impl Numerics {
    /// To the bit, on any processor.
    pub const PORTABLE_F32: Self =
        Self { dtype: Precision::F32, attention: Attention::Portable, noise: Noise::Philox };
    /// Up to the rounding of the hardware.
    pub const DEVICE_F16: Self =
        Self { dtype: Precision::F16, attention: Attention::Device, noise: Noise::Philox };
    /// Up to the rounding of the hardware, with the range of f32.
    pub const DEVICE_BF16: Self = Self { dtype: Precision::Bf16, ..Self::DEVICE_F16 };

    const NAMED: [(&str, Self); 3] = [
        ("portable-f32", Self::PORTABLE_F32),
        ("device-f16", Self::DEVICE_F16),
        ("device-bf16", Self::DEVICE_BF16),
    ];

    /// Whether two honest answers agree to the bit.
    pub fn is_exact(self) -> bool {
        self.dtype == Precision::F32 && self.attention == Attention::Portable
    }

    pub(crate) fn check(self) -> Result<Self, &'static str> {
        if self.attention == Attention::Portable && self.dtype != Precision::F32 {
            return Err("portable attention is there in f32 alone");
        }
        if self.attention == Attention::Flash && self.dtype == Precision::F32 {
            return Err("flash attention is there in f16 and bf16 alone");
        }
        Ok(self)
    }

    fn name(self) -> Option<&'static str> {
        Self::NAMED.into_iter().find(|(_, profile)| *profile == self).map(|(name, _)| name)
    }
}

impl fmt::Display for Numerics {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        if let Some(name) = self.name() {
            return formatter.write_str(name);
        }
        let dtype = match self.dtype {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
        };
        let attention = match self.attention {
            Attention::Portable => "portable",
            Attention::Device => "device",
            Attention::Flash => "flash",
        };
        write!(formatter, "{dtype} with {attention} attention")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    dtype: Precision,
    attention: Attention,
    #[serde(default)]
    noise: Noise,
}

impl Serialize for Numerics {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.name() {
            Some(name) => name.serialize(serializer),
            None => Table { dtype: self.dtype, attention: self.attention, noise: self.noise }
                .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Numerics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;

        impl<'de> Visitor<'de> for NameOrTable {
            type Value = Numerics;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter
                    .write_str("portable-f32, device-f16, device-bf16, or a table of dtype and attention")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Numerics, E> {
                let mut named = Numerics::NAMED.into_iter();
                let found = named.find(|(name, _)| *name == text).map(|(_, profile)| profile);
                found.ok_or_else(|| E::unknown_variant(text, &["portable-f32", "device-f16", "device-bf16"]))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Numerics, A::Error> {
                let Table { dtype, attention, noise } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Numerics { dtype, attention, noise }.check().map_err(serde::de::Error::custom)
            }
        }

        deserializer.deserialize_any(NameOrTable)
    }
}
