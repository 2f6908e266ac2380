//! The tensors of a checkpoint: one safetensors file or several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use crate::config::DType;
use crate::kernels::{Element, Mapping};

pub(crate) mod random;

/// What is wrong with a model's files.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    Unreadable {
        /// Its path.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// There are no weights.
    #[error(
        "{0} has neither model.safetensors nor model.safetensors.index.json; \
         only weights in the safetensors format are read"
    )]
    NoWeights(String),
    /// A file is not what it should be.
    #[error("{file} ({bytes} bytes) is not a complete safetensors file: {reason}; fetch it again")]
    Broken {
        /// Its name.
        file: String,
        /// Its size.
        bytes: usize,
        /// What does not fit.
        reason: String,
    },
    /// The index of a sharded checkpoint is wrong.
    #[error("model.safetensors.index.json: {0}")]
    Index(String),
    /// A tensor is not there.
    #[error("the weights have no tensor `{0}`, which this architecture needs")]
    Missing(String),
    /// A tensor is there that would be ignored.
    #[error("the weights have a tensor `{0}`, which this architecture does not use")]
    Unused(String),
    /// A tensor does not fit the config.
    #[error("tensor `{name}` in {file} has shape {found:?}, but config.json asks for {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// The file it is in.
        file: String,
        /// Shape by the config.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is in a type that is not read.
    #[error("tensor `{name}` in {file} has type {found}; only F32, F16 and BF16 are supported")]
    Type {
        /// Its name.
        name: String,
        /// The file it is in.
        file: String,
        /// Its type.
        found: String,
    },
}

/// Bytes of a file, mapped or part of this program, or made up.
enum Source {
    Mapped(Mapping),
    Made(Vec<u8>),
    Embedded(&'static [u8]),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Source::Mapped(map) => map.bytes(),
            Source::Made(bytes) => bytes,
            Source::Embedded(bytes) => bytes,
        }
    }
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    data: std::ops::Range<usize>,
}

/// All tensors of a checkpoint, by name. Nothing is read before it is asked for.
pub struct Weights {
    files: Vec<(String, Source)>,
    entries: BTreeMap<String, Entry>,
}

impl Weights {
    /// Opens the weights in a directory as the hub lays it out.
    ///
    /// # Errors
    /// If a file is missing, incomplete, or not safetensors.
    pub fn open(directory: &Path) -> Result<Weights, WeightsError> {
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        let mut weights = Weights {
            files: Vec::new(),
            entries: BTreeMap::new(),
        };
        if single.exists() {
            weights.add_file(directory, "model.safetensors")?;
        } else if index.exists() {
            let unreadable = |source| WeightsError::Unreadable {
                file: index.display().to_string(),
                source,
            };
            let text = std::fs::read_to_string(&index).map_err(unreadable)?;
            let tensors = parse_index(&text)?;
            let names: BTreeSet<&String> = tensors.values().collect();
            for name in names {
                weights.add_file(directory, name)?;
            }
            for (tensor, file) in &tensors {
                let held = weights
                    .entries
                    .get(tensor)
                    .map(|entry| &weights.files[entry.file].0);
                if held != Some(file) {
                    let message = format!("{file} does not hold tensor `{tensor}`; fetch it again");
                    return Err(WeightsError::Index(message));
                }
            }
        } else {
            return Err(WeightsError::NoWeights(directory.display().to_string()));
        }
        Ok(weights)
    }

    /// The weights in a safetensors file that is part of the program.
    ///
    /// # Errors
    /// If the file is broken.
    pub fn embedded(bytes: &'static [u8]) -> Result<Weights, WeightsError> {
        let mut weights = Weights {
            files: Vec::new(),
            entries: BTreeMap::new(),
        };
        weights.add("embedded model.safetensors".into(), Source::Embedded(bytes))?;
        Ok(weights)
    }

    fn add_file(&mut self, directory: &Path, name: &str) -> Result<(), WeightsError> {
        let path = directory.join(name);
        let map = File::open(&path).and_then(|file| Mapping::of(&file));
        let map = map.map_err(|source| WeightsError::Unreadable {
            file: path.display().to_string(),
            source,
        })?;
        self.add(name.into(), Source::Mapped(map))
    }

    fn add(&mut self, name: String, source: Source) -> Result<(), WeightsError> {
        let bytes = source.bytes();
        let broken = |error: safetensors::SafeTensorError| WeightsError::Broken {
            file: name.clone(),
            bytes: bytes.len(),
            reason: error.to_string(),
        };
        // Checks that the tensors cover the data exactly, so that a cut file is found here.
        SafeTensors::deserialize(bytes).map_err(broken)?;
        let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let start = header + size_of::<u64>();
        for (tensor, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let entry = Entry {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                data: start + from..start + to,
            };
            self.entries.insert(tensor, entry);
        }
        self.files.push((name, source));
        Ok(())
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.entries
            .values()
            .map(|entry| entry.data.len() as u64)
            .sum()
    }

    /// Number of values in all tensors.
    pub fn parameters(&self) -> u64 {
        self.entries
            .values()
            .map(|entry| entry.shape.iter().product::<usize>() as u64)
            .sum()
    }

    /// The type that most values are held in, where a forward pass can run in it.
    pub fn dtype(&self) -> Option<DType> {
        let mut values = BTreeMap::new();
        for entry in self.entries.values() {
            *values.entry(entry.dtype).or_insert(0) += entry.data.len();
        }
        match values.into_iter().max_by_key(|(_, bytes)| *bytes)?.0 {
            Dtype::F32 => Some(DType::F32),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::F16 => Some(DType::F16),
            _ => None,
        }
    }

    /// Names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The tensor `name`, which must have this shape.
    ///
    /// # Errors
    /// If it is missing, or its shape or type is not as it must be.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<View<'_>, WeightsError> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| WeightsError::Missing(name.to_string()))?;
        let (file, source) = &self.files[entry.file];
        if entry.shape != shape {
            return Err(WeightsError::Shape {
                name: name.into(),
                file: file.clone(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            other => {
                return Err(WeightsError::Type {
                    name: name.into(),
                    file: file.clone(),
                    found: format!("{other:?}"),
                });
            }
        };
        Ok(View {
            dtype,
            data: &source.bytes()[entry.data.clone()],
        })
    }
}

/// Tensor names and the files that hold them.
fn parse_index(text: &str) -> Result<BTreeMap<String, String>, WeightsError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_str(text).map_err(|e| WeightsError::Index(e.to_string()))?;
    for file in index.weight_map.values() {
        if Path::new(file)
            .file_name()
            .is_none_or(|name| name != file.as_str())
        {
            return Err(WeightsError::Index(format!(
                "`{file}` is not the name of a file beside it"
            )));
        }
    }
    Ok(index.weight_map)
}

/// One tensor's values, as they lie in the file.
#[derive(Clone, Copy)]
pub struct View<'a> {
    dtype: DType,
    data: &'a [u8],
}

impl<'a> View<'a> {
    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// The values as the bytes of the file, if they are of this type there.
    pub fn as_bytes(&self, dtype: DType) -> Option<&'a [u8]> {
        (self.dtype == dtype).then_some(self.data)
    }

    /// Converts the values from number `first` on to fill `into`.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn read<T: Element>(&self, first: usize, into: &mut [T]) {
        match self.dtype {
            DType::F32 => {
                let data = &self.data[4 * first..4 * (first + into.len())];
                for (to, bytes) in into.iter_mut().zip(data.as_chunks().0) {
                    *to = T::from_f32(f32::from_le_bytes(*bytes));
                }
            }
            DType::BF16 => {
                let data = &self.data[2 * first..2 * (first + into.len())];
                for (to, bytes) in into.iter_mut().zip(data.as_chunks().0) {
                    *to = T::from_f32(Element::to_f32(bf16::from_le_bytes(*bytes)));
                }
            }
            DType::F16 => {
                let data = &self.data[2 * first..2 * (first + into.len())];
                for (to, bytes) in into.iter_mut().zip(data.as_chunks().0) {
                    *to = T::from_f32(Element::to_f32(f16::from_le_bytes(*bytes)));
                }
            }
        }
    }
}
