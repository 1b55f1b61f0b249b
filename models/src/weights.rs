//! Named tensors of safetensors files, mapped or embedded, read in place.
//!
//! A file comes from anywhere: its header is bounded before it is parsed, and every tensor's type
//! and shape is checked against what the architecture expects before it is used.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use crate::checkpoint::names::TensorView;
use crate::lora::{Lora, Patch};
use crate::placement::Compute;
use crate::weight_change::WeightChange;

/// The longest header that is parsed, in bytes; that of Stable Diffusion XL's UNet has 200 kB.
pub const MAX_HEADER_BYTES: u64 = 8 << 20;
/// The most tensors in one model part; Stable Diffusion XL's UNet has 1,680.
pub const MAX_TENSORS: usize = 20_000;

/// Why weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{file} is not a whole safetensors file: {detail}; fetch it again")]
    Malformed { file: String, detail: String },
    #[error(
        "{file} is pickled, whatever its name: reading it would run what is in it; convert it with \
         `python3 models/training/convert_checkpoint.py`"
    )]
    Pickled { file: String },
    #[error("{file} has a header of {bytes} bytes, more than the {MAX_HEADER_BYTES} allowed")]
    HeaderTooLarge { file: String, bytes: u64 },
    #[error("{file} holds more than {MAX_TENSORS} tensors")]
    TooManyTensors { file: String },
    #[error("{file} has no tensor `{name}`; it belongs to another architecture than its config says")]
    MissingTensor { file: String, name: String },
    #[error("tensor `{name}` of {file} is {found:?}, but its config makes it {expected:?}")]
    WrongShape { file: String, name: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("tensor `{name}` of {file} has numbers of type {found}; f16, bf16 and f32 are read")]
    UnsupportedType { file: String, name: String, found: String },
    #[error(
        "{file} has tensors that belong to no layer of this model: `{names}`; it is no LoRA of linear layers \
         and convolutions, or one of another model"
    )]
    UnknownLora { file: String, names: String },
    #[error("{file}: {detail}")]
    Unsuitable { file: String, detail: String },
    #[error("cannot place weights on the device: {0}")]
    Device(#[from] candle_core::Error),
}

/// A result of reading weights.
pub(crate) type WeightsResult<T> = Result<T, WeightsError>;

impl WeightsError {
    /// A stable label for metrics and programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::Malformed { .. } => "malformed_weights",
            Self::Pickled { .. } => "pickled",
            Self::HeaderTooLarge { .. } => "header_too_large",
            Self::TooManyTensors { .. } => "too_many_tensors",
            Self::MissingTensor { .. } => "missing_tensor",
            Self::WrongShape { .. } => "wrong_shape",
            Self::UnsupportedType { .. } => "unsupported_type",
            Self::UnknownLora { .. } => "unknown_lora",
            Self::Unsuitable { .. } => "unsuitable_weights",
            Self::Device(_) => "device",
        }
    }
}

/// The bytes of one file.
#[derive(Clone)]
pub(crate) enum FileBytes {
    Embedded(&'static [u8]),
    Mapped(Arc<memmap2::Mmap>),
}

impl FileBytes {
    /// Maps a file into memory.
    pub(crate) fn map(path: &Path) -> Result<Self, WeightsError> {
        let unreadable = |source| WeightsError::Unreadable { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        // SAFETY: weights are only read; a file that is cut short by someone else while the node
        // runs would raise SIGBUS, which is documented for operators as for any mapped model.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(unreadable)?;
        Ok(Self::Mapped(Arc::new(map)))
    }

    /// Gives back the memory that these bytes were read into; read again, they come from the file.
    pub(crate) fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: nothing writes to the map, so that its pages are those of the file, again or still.
            let advised = unsafe { map.unchecked_advise_range(advice, bytes.start, bytes.len()) };
            if let Err(error) = advised {
                tracing::debug!(%error, "mapped weights stay in memory");
            }
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Embedded(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

#[derive(Clone)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
    /// Whether the file has rows and columns the other way round than `shape`.
    transposed: bool,
}

struct Store {
    files: Vec<FileBytes>,
    entries: HashMap<String, Entry>,
    /// What LoRAs add, by the name of the tensor.
    patches: HashMap<String, Vec<Patch>>,
    /// What is done to all tensors after that.
    change: Option<WeightChange>,
}

/// The tensors below one name, to be placed on one device.
#[derive(Clone)]
pub(crate) struct Weights {
    store: Arc<Store>,
    /// The part of the model in messages: `unet`.
    label: Arc<str>,
    prefix: String,
    compute: Compute,
}

impl Weights {
    /// Reads the headers of a part's files.
    pub(crate) fn open(label: &str, files: Vec<FileBytes>, compute: &Compute) -> Result<Self, WeightsError> {
        let mut entries = HashMap::new();
        for (index, file) in files.iter().enumerate() {
            read_entries(label, index, file.as_slice(), &mut entries)?;
            if entries.len() > MAX_TENSORS {
                return Err(WeightsError::TooManyTensors { file: label.to_owned() });
            }
        }
        Ok(Self {
            store: Arc::new(Store { files, entries, patches: HashMap::new(), change: None }),
            label: label.into(),
            prefix: String::new(),
            compute: compute.clone(),
        })
    }

    /// The tensors below `name` of these.
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// How many numbers there are in all tensors together.
    pub(crate) fn numbers(&self) -> u64 {
        let of = |entry: &Entry| entry.shape.iter().map(|&size| size as u64).product::<u64>();
        self.store.entries.values().map(of).sum()
    }

    /// The same weights under other names: those of `rename`, or none.
    pub(crate) fn renamed(self, rename: impl Fn(&str) -> Vec<TensorView>) -> WeightsResult<Self> {
        let mut entries = HashMap::new();
        for (name, entry) in &self.store.entries {
            for TensorView { name: new_name, share, transposed } in rename(name) {
                let mut entry = entry.clone();
                if let Some((index, of)) = share {
                    let rows = entry.shape.first().copied().filter(|rows| rows.is_multiple_of(of));
                    let Some(rows) = rows else {
                        return Err(self.unsuitable(format!("`{name}` does not divide into {of} parts")));
                    };
                    entry.shape[0] = rows / of;
                    let length = (entry.end - entry.start) / of;
                    entry.start += index * length;
                    entry.end = entry.start + length;
                }
                if transposed {
                    entry.shape.reverse();
                    entry.transposed = true;
                }
                entries.insert(new_name, entry);
            }
        }
        let Store { files, change, .. } = &*self.store;
        let store = Store { files: files.clone(), entries, patches: HashMap::new(), change: *change };
        Ok(Self { store: Arc::new(store), ..self })
    }

    /// With what a LoRA adds to the weights of this part.
    pub(crate) fn with_lora(self, part: &str, lora: &Arc<Lora>) -> WeightsResult<Self> {
        let mut patches = self.store.patches.clone();
        for (name, patch) in lora.patches(part, &self)? {
            patches.entry(name).or_default().push(patch);
        }
        let Store { files, entries, change, .. } = &*self.store;
        let store = Store { files: files.clone(), entries: entries.clone(), patches, change: *change };
        Ok(Self { store: Arc::new(store), ..self })
    }

    /// With a change of all tensors, after what LoRAs add.
    pub(crate) fn with_change(self, change: WeightChange) -> Self {
        let Store { files, entries, patches, .. } = &*self.store;
        let (files, entries, patches) = (files.clone(), entries.clone(), patches.clone());
        Self { store: Arc::new(Store { files, entries, patches, change: Some(change) }), ..self }
    }

    /// Names and shapes of all tensors of the part, in any order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.store.entries.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// Whether layers are to use the processor's own kernels.
    pub(crate) fn on_host(&self) -> bool {
        self.compute.is_host()
    }

    /// How layers compute with these weights.
    pub(crate) fn compute(&self) -> &Compute {
        &self.compute
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.store.entries.contains_key(&format!("{}{name}", self.prefix))
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.store.entries.get(&format!("{}{name}", self.prefix)).map(|entry| entry.shape.as_slice())
    }

    /// An error about these weights as a whole.
    pub(crate) fn unsuitable(&self, detail: impl Into<String>) -> WeightsError {
        let place = format!("{} {}", self.label, self.prefix.trim_end_matches('.'));
        WeightsError::Unsuitable { file: place.trim_end().to_owned(), detail: detail.into() }
    }

    /// The values of a tensor in main memory, row-major.
    pub(crate) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let (name, entry) = self.entry(name, shape)?;
        let mut values = self.stored(&name, entry)?;
        if let (true, [rows, columns]) = (entry.transposed, shape) {
            let stored = values;
            values =
                (0..rows * columns).map(|place| stored[place % columns * rows + place / columns]).collect();
        }
        for patch in self.store.patches.get(&name).into_iter().flatten() {
            patch.add_to(&mut values, shape.first().copied().unwrap_or(1))?;
        }
        if let Some(change) = self.store.change {
            change.apply(&name, shape, &mut values);
        }
        Ok(values)
    }

    /// The values as they lie in the file.
    fn stored(&self, name: &str, entry: &Entry) -> Result<Vec<f32>, WeightsError> {
        let file = &self.store.files[entry.file];
        let bytes = &file.as_slice()[entry.start..entry.end];
        let values = match entry.dtype {
            Dtype::F16 => {
                Ok(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
            }
            Dtype::BF16 => {
                Ok(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
            }
            Dtype::F32 => {
                Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            other => Err(WeightsError::UnsupportedType {
                file: self.label.to_string(),
                name: name.to_owned(),
                found: format!("{other:?}"),
            }),
        };
        // A model is in memory once, not a second time as the pages that it was read from.
        file.release(entry.start..entry.end);
        values
    }

    /// The tensor on the device.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, WeightsError> {
        self.place(self.values(name, shape)?, shape)
    }

    /// Values, row-major, as a tensor where these weights are placed.
    pub(crate) fn place(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor, WeightsError> {
        Ok(self.compute.tensor(values, shape)?)
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<(String, &Entry), WeightsError> {
        let name = format!("{}{name}", self.prefix);
        let file = || self.label.to_string();
        let Some(entry) = self.store.entries.get(&name) else {
            return Err(WeightsError::MissingTensor { file: file(), name });
        };
        if entry.shape != shape {
            return Err(WeightsError::WrongShape {
                file: file(),
                name,
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        Ok((name, entry))
    }
}

fn read_entries(
    label: &str,
    file: usize,
    bytes: &[u8],
    entries: &mut HashMap<String, Entry>,
) -> Result<(), WeightsError> {
    let malformed = |detail: String| WeightsError::Malformed { file: label.to_owned(), detail };
    let Some(header) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)) else {
        return Err(malformed("it is shorter than its header".to_owned()));
    };
    // PyTorch's files are zips of pickles, its oldest ones pickles.
    if matches!(bytes, [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..]) && header > MAX_HEADER_BYTES {
        return Err(WeightsError::Pickled { file: label.to_owned() });
    }
    if header > MAX_HEADER_BYTES {
        return Err(WeightsError::HeaderTooLarge { file: label.to_owned(), bytes: header });
    }
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| malformed(error.to_string()))?;
    let base = bytes.as_ptr() as usize;
    for (name, view) in tensors.iter() {
        let start = view.data().as_ptr() as usize - base;
        let entry = Entry {
            file,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            start,
            end: start + view.data().len(),
            transposed: false,
        };
        entries.insert(name.to_owned(), entry);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_bytes_are_read_again() {
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &content).unwrap();
        let mapped = FileBytes::map(file.path()).unwrap();
        for range in [0..content.len(), 4097..4098, 9000..9000, content.len()..content.len()] {
            assert_eq!(mapped.as_slice(), content);
            mapped.release(range);
        }
        assert_eq!(mapped.as_slice(), content);
    }
}
