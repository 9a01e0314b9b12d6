//! The GGUF format, versions 2 and 3, little-endian: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeMap;
use std::ops::Range;

use penstock_kernels::Format;

use super::{Error, Metadata, Tensor, Value};

/// Fewest bytes of a key with its value, and of a tensor's entry: they bound how many a file can have.
const LEAST_ENTRY: u64 = 13;
/// ggml's own limit of a tensor's dimensions.
const MOST_DIMENSIONS: u32 = 4;

/// What stands before the tensors of a file.
pub(super) struct Header {
    pub(super) metadata: Metadata,
    /// Each key's type and value, in the file's order.
    pub(super) entries: Vec<(String, Range<usize>)>,
    pub(super) tensors: BTreeMap<String, Tensor>,
}

/// Metadata and tensors of a whole file.
pub(super) fn read(file: &[u8]) -> Result<Header, Error> {
    let mut reader = Reader { file, at: 0, what: "the header" };
    let magic = reader.array()?;
    if magic != *b"GGUF" {
        return Err(Error::NotGguf(magic));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(Error::Version(version));
    }
    let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
    reader.what = "the metadata";
    reader.check(value_count, LEAST_ENTRY)?;
    let (mut values, mut ranges) = (BTreeMap::new(), Vec::new());
    for _ in 0..value_count {
        let key = reader.text()?;
        let start = reader.at;
        let kind = reader.u32()?;
        let value = reader.value(kind, &key)?;
        ranges.push((key.clone(), start..reader.at));
        if values.insert(key.clone(), value).is_some() {
            return Err(Error::Corrupted(format!("the metadata has {key:?} twice")));
        }
    }
    let metadata = Metadata(values);
    reader.what = "the list of tensors";
    reader.check(tensor_count, LEAST_ENTRY)?;
    let mut entries = Vec::with_capacity(tensor_count as usize);
    for _ in 0..tensor_count {
        entries.push(reader.entry()?);
    }
    let alignment = metadata.size("general.alignment")?.unwrap_or(32);
    if alignment == 0 || !alignment.is_multiple_of(8) {
        return Err(Error::Corrupted(format!("general.alignment is {alignment}, no multiple of 8")));
    }
    let start = reader.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let mut tensors = BTreeMap::new();
    for entry in entries {
        let (name, tensor) = entry.place(start as u64, alignment as u64, file.len() as u64)?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Error::Corrupted(format!("the file has tensor {name:?} twice")));
        }
    }
    Ok(Header { metadata, entries: ranges, tensors })
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    /// What is being read, for errors.
    what: &'static str,
}

/// A tensor as the file lists it.
struct Entry {
    name: String,
    /// Columns first.
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl<'a> Reader<'a> {
    /// Refuses `count` things of at least `least` bytes where the file has no room for them.
    fn check(&self, count: u64, least: u64) -> Result<(), Error> {
        let needed = count.checked_mul(least).and_then(|bytes| bytes.checked_add(self.at as u64));
        match needed {
            Some(needed) if needed <= self.file.len() as u64 => Ok(()),
            _ => Err(Error::Truncated {
                what: self.what.to_owned(),
                needed: needed.unwrap_or(u64::MAX),
                found: self.file.len() as u64,
            }),
        }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Error> {
        self.check(len, 1)?;
        let taken = &self.file[self.at..self.at + len as usize];
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let bytes = self.take(N as u64)?;
        Ok(*bytes.first_chunk().expect("N bytes were taken"))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, Error> {
        let (len, at) = (self.u64()?, self.at);
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes);
        Ok(text.map_err(|_| Error::Corrupted(format!("the text at byte {at} is not UTF-8")))?.to_owned())
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, Error> {
        if kind != 9 {
            return self.scalar(kind, key);
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(Error::Corrupted(format!("{key:?} is an array of arrays"))),
            _ => return Err(Error::Corrupted(format!("{key:?} has elements of unknown type {kind}"))),
        };
        self.check(count, least)?;
        (0..count).map(|_| self.scalar(kind, key)).collect::<Result<_, _>>().map(Value::Array)
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<Value, Error> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(Error::Corrupted(format!("{key:?} is a boolean of {other}"))),
            },
            8 => Value::Text(self.text()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(Error::Corrupted(format!("{key:?} has unknown type {other}"))),
        })
    }

    fn entry(&mut self) -> Result<Entry, Error> {
        let name = self.text()?;
        let count = self.u32()?;
        if !(1..=MOST_DIMENSIONS).contains(&count) {
            return Err(Error::Corrupted(format!("tensor {name:?} has {count} dimensions")));
        }
        let dimensions = (0..count).map(|_| self.u64()).collect::<Result<_, _>>()?;
        Ok(Entry { name, dimensions, kind: self.u32()?, offset: self.u64()? })
    }
}

impl Entry {
    /// The tensor in a file of `len` bytes whose tensors start at byte `start`.
    fn place(self, start: u64, alignment: u64, len: u64) -> Result<(String, Tensor), Error> {
        let Self { name, dimensions, kind, offset } = self;
        let Some(format) = Format::from_ggml(kind) else { return Err(Error::Type { name, id: kind }) };
        if !offset.is_multiple_of(alignment) {
            return Err(Error::Corrupted(format!("tensor {name:?} starts at {offset}, no multiple of {alignment}")));
        }
        let cols = usize::try_from(dimensions[0]).ok();
        let rows = dimensions[1..].iter().try_fold(1u64, |rows, &n| rows.checked_mul(n));
        let rows = rows.and_then(|rows| usize::try_from(rows).ok());
        let size =
            cols.zip(rows).and_then(|(cols, rows)| Some((cols, rows, format.row_bytes(cols)?.checked_mul(rows)?)));
        let Some((cols, rows, bytes)) = size.filter(|size| size.2 > 0) else {
            return Err(Error::Corrupted(format!("tensor {name:?} of {dimensions:?} {format} elements")));
        };
        let first = start.checked_add(offset);
        let end = first.and_then(|first| first.checked_add(bytes as u64)).unwrap_or(u64::MAX);
        match first {
            Some(first) if end <= len => {
                let bytes = first as usize..end as usize;
                Ok((name, Tensor { format, shape: [rows, cols], dimensions, bytes }))
            }
            _ => Err(Error::Truncated { what: format!("tensor {name:?}"), needed: end, found: len }),
        }
    }
}
