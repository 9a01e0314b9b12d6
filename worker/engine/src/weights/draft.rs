//! A GGUF file to be written: metadata and tensors of another one or of a folder, in another format.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use penstock_kernels::{Format, codec};

use super::{Error, Weights};

const ALIGNMENT: u64 = 32;

/// What a GGUF file will hold.
pub struct Draft<'a> {
    /// Each key with the bytes of its type and value.
    entries: Vec<(String, Vec<u8>)>,
    tensors: Vec<Source<'a>>,
}

/// A tensor as it is now.
pub(super) struct Source<'a> {
    pub(super) name: String,
    /// Columns first.
    pub(super) dimensions: Vec<u64>,
    pub(super) format: Format,
    pub(super) bytes: &'a [u8],
    /// Rows of a head whose halves are to become pairs of neighbours, as GGUF's Llama files have them.
    pub(super) paired: Option<usize>,
}

/// A metadata value to be written.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "GGUF's own types")]
pub enum Entry {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

/// What was written: how many elements in each format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Formats and the elements in each, the format asked for among them.
    pub elements: Vec<(Format, u64)>,
}

/// The formats that are written, for a person.
pub(super) fn written() -> String {
    let names = Format::ALL.into_iter().filter(|format| *format != Format::Q8K).map(|format| format.to_string());
    names.collect::<Vec<_>>().join(", ")
}

impl Entry {
    fn bytes(&self) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let (kind, bytes): (u32, Vec<u8>) = match self {
            Self::U32(value) => (4, value.to_le_bytes().to_vec()),
            Self::F32(value) => (6, value.to_le_bytes().to_vec()),
            Self::Bool(value) => (7, vec![u8::from(*value)]),
            Self::Text(value) => (8, text(value)),
            Self::Texts(values) => (9, array(8, values.len(), values.iter().flat_map(|value| text(value)))),
            Self::I32s(values) => (9, array(5, values.len(), values.iter().flat_map(|value| value.to_le_bytes()))),
        };
        [&kind.to_le_bytes()[..], &bytes].concat()
    }
}

fn array(kind: u32, len: usize, bytes: impl Iterator<Item = u8>) -> Vec<u8> {
    kind.to_le_bytes().into_iter().chain((len as u64).to_le_bytes()).chain(bytes).collect()
}

impl<'a> Draft<'a> {
    /// With nothing in it but these tensors.
    pub(super) fn new(tensors: Vec<Source<'a>>) -> Self {
        Self { entries: Vec::new(), tensors }
    }

    /// All that an open file has.
    pub fn of(weights: &'a Weights) -> Self {
        let entries = weights.entries.iter().map(|(key, range)| (key.clone(), weights.map[range.clone()].to_vec()));
        let mut tensors: Vec<_> = weights.tensors.iter().collect();
        tensors.sort_by_key(|(_, tensor)| tensor.bytes.start);
        let source = |(name, tensor): (&String, &'a super::Tensor)| Source {
            name: name.clone(),
            dimensions: tensor.dimensions.clone(),
            format: tensor.format,
            bytes: &weights.map[tensor.bytes.clone()],
            paired: None,
        };
        Self { entries: entries.collect(), tensors: tensors.into_iter().map(source).collect() }
    }

    /// Sets a key, in its place if it is there.
    pub fn set(&mut self, key: &str, value: &Entry) {
        let bytes = value.bytes();
        match self.entries.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = bytes,
            None => self.entries.push((key.to_owned(), bytes)),
        }
    }

    /// Writes the file with its matrices in `to`, the embeddings and the head in 8 bits at least, and vectors as they
    /// are. A matrix whose rows have no whole number of blocks gets the next format of 32 elements a block.
    pub fn write(mut self, path: &Path, to: Format) -> Result<Written, Error> {
        if !codec::encode(to, &[], &mut Vec::new()) {
            return Err(Error::NotWritten { format: to });
        }
        self.set("general.file_type", &Entry::U32(file_type(to)));
        self.set("general.quantization_version", &Entry::U32(2));
        self.entries.retain(|(key, _)| key != "general.alignment");
        let targets = self.tensors.iter().map(|tensor| tensor.target(to)).collect::<Result<Vec<_>, _>>()?;
        let failed = |source| Error::Write { path: path.to_owned(), source };
        let mut out = BufWriter::new(File::create_new(path).map_err(failed)?);
        let bytes = self.emit(&targets, &mut out).and_then(|bytes| {
            out.flush()?;
            out.get_ref().sync_all()?;
            Ok(bytes)
        });
        let mut elements: Vec<(Format, u64)> = Vec::new();
        for (tensor, format) in self.tensors.iter().zip(&targets) {
            match elements.iter_mut().find(|(known, _)| known == format) {
                Some((_, count)) => *count += tensor.elements(),
                None => elements.push((*format, tensor.elements())),
            }
        }
        elements.sort_unstable();
        Ok(Written { bytes: bytes.map_err(failed)?, elements })
    }

    fn emit(&self, targets: &[Format], out: &mut impl Write) -> io::Result<u64> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            header.extend(text(key));
            header.extend(value);
        }
        let mut offset = 0u64;
        for (tensor, format) in self.tensors.iter().zip(targets) {
            header.extend(text(&tensor.name));
            header.extend((tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|n| header.extend(n.to_le_bytes()));
            header.extend(format.to_ggml().to_le_bytes());
            header.extend(offset.to_le_bytes());
            let bytes = tensor.elements() / format.block_elements() as u64 * format.block_bytes() as u64;
            offset += bytes.next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        out.write_all(&header)?;
        for (tensor, format) in self.tensors.iter().zip(targets) {
            let mut bytes = tensor.converted(*format);
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
            out.write_all(&bytes)?;
        }
        Ok(header.len() as u64 + offset)
    }
}

impl Source<'_> {
    fn elements(&self) -> u64 {
        self.dimensions.iter().product()
    }

    /// What it is written as where matrices are asked for in `to`.
    fn target(&self, to: Format) -> Result<Format, Error> {
        let cols = self.dimensions[0] as usize;
        if self.dimensions.len() < 2 {
            // Norms and the like are small, and kernels take them as f32.
            return Ok(Format::F32);
        }
        let whole = matches!(self.name.as_str(), "token_embd.weight" | "output.weight");
        let wanted = if whole && to.block_bytes() * 32 < 34 * to.block_elements() { Format::Q8_0 } else { to };
        let fallback = match wanted {
            Format::Q2K | Format::Q3K => Format::Q4_0,
            Format::Q4K => Format::Q5_0,
            Format::Q5K => Format::Q5_1,
            _ => Format::Q8_0,
        };
        let fits = |format: &Format| cols.is_multiple_of(format.block_elements());
        [wanted, fallback].into_iter().find(fits).ok_or_else(|| {
            let why = format!("tensor {:?} has rows of {cols} elements, no whole number of {wanted} blocks", self.name);
            Error::Unsupported(why)
        })
    }

    fn converted(&self, to: Format) -> Vec<u8> {
        let cols = self.dimensions[0] as usize;
        let width = self.format.row_bytes(cols).expect("tensors have whole blocks");
        let (mut out, mut values) = (Vec::new(), vec![0.0; cols]);
        for row in 0..self.bytes.len() / width {
            let from = self.paired.map_or(row, |head| row - row % head + unpaired(row % head, head));
            let bytes = &self.bytes[from * width..][..width];
            if to == self.format {
                out.extend_from_slice(bytes);
                continue;
            }
            codec::decode(self.format, bytes, &mut values);
            codec::encode(to, &values, &mut out);
        }
        out
    }
}

/// Which row of a head in halves becomes its row `row` in pairs.
fn unpaired(row: usize, head: usize) -> usize {
    row / 2 + row % 2 * (head / 2)
}

/// llama.cpp's number of a file that is mostly in `format`.
fn file_type(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 | Format::Q8K => 7,
        Format::Q5_0 => 8,
        Format::Q5_1 => 9,
        Format::Q2K => 10,
        Format::Q3K => 11,
        Format::Q4K => 14,
        Format::Q5K => 16,
        Format::Q6K => 18,
        Format::Bf16 => 32,
    }
}
