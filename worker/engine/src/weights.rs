//! Model files: GGUF to metadata and matrices. Nothing in a file is trusted: every length is checked against what is there.

mod draft;
mod gguf;
mod metadata;
mod safetensors;
mod summary;

pub use draft::{Draft, Entry, Written};
pub use metadata::{Metadata, Value};
pub use safetensors::Folder;
pub use summary::Summary;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use penstock_kernels::Format;
use penstock_kernels::{Mapped, Matrix};

/// Why a model file cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is no GGUF file.
    #[error("not a GGUF file: it starts with {0:02x?}")]
    NotGguf([u8; 4]),
    /// A version of GGUF that is not served.
    #[error("GGUF version {0} is not served; 2 and 3 are")]
    Version(u32),
    /// It ends too early.
    #[error("truncated: {what} needs {needed} bytes, the file has {found}")]
    Truncated {
        /// What lies past the end.
        what: String,
        /// Bytes that the file would have at least.
        needed: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// It contradicts itself or its format.
    #[error("corrupted: {0}")]
    Corrupted(String),
    /// A metadata key is not there.
    #[error("the metadata has no {0:?}")]
    MissingKey(String),
    /// A metadata key has a value of another type or out of its range.
    #[error("the metadata's {key:?} is not {expected}")]
    Key {
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An architecture that is not served.
    #[error("architecture {name:?} is not served; served are: {}", served.join(", "))]
    Architecture {
        /// The file's.
        name: String,
        /// Those that are.
        served: &'static [&'static str],
    },
    /// The architecture is served, but not this feature of it.
    #[error("not served yet: {0}")]
    Unsupported(String),
    /// A tensor that the architecture has is not there.
    #[error("the file has no tensor {0:?}")]
    MissingTensor(String),
    /// A tensor that the architecture lacks is there: computing without it would give wrong results.
    #[error("the file has a tensor that the architecture does not use: {0:?}")]
    UnexpectedTensor(String),
    /// A tensor's shape is not the one that the metadata asks for.
    #[error("tensor {name:?} is {found:?}, not {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// `[rows, cols]` by the metadata.
        expected: [usize; 2],
        /// `[rows, cols]` of the file.
        found: [usize; 2],
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A format that nothing here writes.
    #[error("{format} is not written; written are: {}", draft::written())]
    NotWritten {
        /// The format.
        format: Format,
    },
    /// A tensor has an element type that is not served.
    #[error("tensor {name:?} has ggml type {id}, which is not served")]
    Type {
        /// The tensor.
        name: String,
        /// ggml's number of the type.
        id: u32,
    },
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone)]
struct Tensor {
    format: Format,
    /// `[rows, cols]`.
    shape: [usize; 2],
    /// As the file has them, columns first.
    dimensions: Vec<u64>,
    bytes: Range<usize>,
}

/// An open model file.
pub struct Weights {
    map: Mapped,
    metadata: Metadata,
    /// Each key's type and value as the file has them, in its order.
    entries: Vec<(String, Range<usize>)>,
    tensors: BTreeMap<String, Tensor>,
    /// Those that nobody has taken yet.
    unused: RefCell<std::collections::BTreeSet<String>>,
}

impl Weights {
    /// Opens a GGUF file and checks that every tensor lies within it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let map = Mapped::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let gguf::Header { metadata, entries, tensors } = gguf::read(&map)?;
        let unused = RefCell::new(tensors.keys().cloned().collect());
        Ok(Self { map, metadata, entries, tensors, unused })
    }

    /// What the file says of the model and its tokenizer.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// `[rows, cols]` of tensor `name`; a vector is one row.
    pub fn shape(&self, name: &str) -> Result<[usize; 2], Error> {
        Ok(self.tensor(name)?.shape)
    }

    /// A vector of `len` elements as f32.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let matrix = self.matrix(len, &[(name, 1, Order::Stored)])?;
        let mut vector = vec![0.0; len];
        matrix.row(0, &mut vector);
        Ok(vector)
    }

    /// The tensors `(name, rows, order)`, one below another, as one matrix of `cols` columns.
    pub fn matrix(&self, cols: usize, parts: &[(&str, usize, Order)]) -> Result<Matrix, Error> {
        let mut bytes = Vec::with_capacity(parts.len());
        for &(name, rows, order) in parts {
            bytes.push(self.rows(name, [rows, cols], order)?);
        }
        let slices: Vec<(Format, &[u8])> = bytes.iter().map(|(format, bytes)| (*format, &bytes[..])).collect();
        let matrix = Matrix::new(cols, &slices).map_err(|error| Error::Corrupted(error.to_string()))?;
        drop(bytes);
        for (name, ..) in parts {
            self.map.advise_dont_need(self.tensor(name)?.bytes.clone());
        }
        Ok(matrix)
    }

    /// Refuses a file that holds tensors which were not taken.
    pub fn finish(&self) -> Result<(), Error> {
        match self.unused.borrow().first() {
            Some(name) => Err(Error::UnexpectedTensor(name.clone())),
            None => Ok(()),
        }
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.bytes.len() as u64).sum()
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))
    }

    fn rows(
        &self,
        name: &str,
        expected: [usize; 2],
        order: Order,
    ) -> Result<(Format, std::borrow::Cow<'_, [u8]>), Error> {
        let tensor = self.tensor(name)?;
        if tensor.shape != expected {
            return Err(Error::Shape { name: name.to_owned(), expected, found: tensor.shape });
        }
        self.unused.borrow_mut().remove(name);
        let bytes = &self.map[tensor.bytes.clone()];
        Ok((tensor.format, order.apply(bytes, expected[0])))
    }
}

/// The order of a matrix's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the file has them.
    Stored,
    /// In each head, the rotated rows `(2i, 2i + 1)` become `(i, i + rotated / 2)`: GGUF files of the Llama family have
    /// pairs as neighbours, kernels rotate halves. Scores do not change where queries and keys are both reordered.
    Halves {
        /// Rows of a head.
        head: usize,
        /// How many of them are rotated.
        rotated: usize,
    },
}

impl Order {
    fn apply(self, bytes: &[u8], rows: usize) -> std::borrow::Cow<'_, [u8]> {
        match self {
            Self::Stored => bytes.into(),
            Self::Halves { head, rotated } => {
                let width = bytes.len() / rows;
                let mut to = Vec::with_capacity(bytes.len());
                for row in 0..rows {
                    let (start, within) = (row - row % head, row % head);
                    let from = match within {
                        _ if within >= rotated => within,
                        first if first < rotated / 2 => 2 * first,
                        second => 2 * (second - rotated / 2) + 1,
                    };
                    to.extend_from_slice(&bytes[(start + from) * width..][..width]);
                }
                to.into()
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
