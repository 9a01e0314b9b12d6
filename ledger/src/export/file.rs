//! As much of Parquet as flat tables of texts and numbers need: plain values, one data page for each column and row group,
//! nothing compressed. The format is apache/parquet-format's (README.md, parquet.thrift), its metadata Thrift's compact
//! protocol. A whole implementation would cost more build time than all of the ledger's database drivers.

use std::io::{self, Write};

const MAGIC: &[u8; 4] = b"PAR1";

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Json,
    Int,
    /// Microseconds since 1970, UTC.
    Micros,
}

impl Type {
    /// parquet.thrift: Type.
    fn physical(self) -> i64 {
        match self {
            Self::Int | Self::Micros => 2,
            Self::Text | Self::Json => 6,
        }
    }

    /// parquet.thrift: ConvertedType.
    fn converted(self) -> Option<i64> {
        match self {
            Self::Text => Some(0),
            Self::Micros => Some(10),
            Self::Json => Some(19),
            Self::Int => None,
        }
    }
}

/// A column and what of it is not written yet.
pub(super) struct Column {
    name: &'static str,
    kind: Type,
    optional: bool,
    values: Vec<u8>,
    /// Runs of rows that have a value, or have none.
    runs: Vec<(u64, bool)>,
}

impl Column {
    pub(super) fn required(name: &'static str, kind: Type) -> Self {
        Self { name, kind, optional: false, values: Vec::new(), runs: Vec::new() }
    }

    pub(super) fn optional(name: &'static str, kind: Type) -> Self {
        Self { optional: true, ..Self::required(name, kind) }
    }

    fn add(&mut self, value: Option<&[u8]>) {
        match self.runs.last_mut() {
            Some((count, some)) if *some == value.is_some() => *count += 1,
            _ => self.runs.push((1, value.is_some())),
        }
        if let Some(value) = value {
            if self.kind.physical() == 6 {
                let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
                self.values.extend_from_slice(&length.to_le_bytes());
            }
            self.values.extend_from_slice(value);
        }
    }

    /// The page's data: which rows have a value, where that is a question, then the values.
    fn take_page(&mut self) -> Vec<u8> {
        let (values, runs) = (std::mem::take(&mut self.values), std::mem::take(&mut self.runs));
        if !self.optional {
            return values;
        }
        let mut levels = Vec::new();
        for (count, some) in runs {
            varint(&mut levels, count << 1);
            levels.push(u8::from(some));
        }
        let mut page = u32::try_from(levels.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        page.extend_from_slice(&levels);
        page.extend_from_slice(&values);
        page
    }
}

/// A file in the making.
pub(super) struct File<W> {
    out: W,
    offset: u64,
    columns: Vec<Column>,
    rows: u64,
    groups: Vec<Group>,
}

struct Group {
    rows: u64,
    /// For each column, where its page begins and its size with the page's header.
    chunks: Vec<(u64, u64)>,
}

impl<W: Write> File<W> {
    pub(super) fn begin(mut out: W, columns: Vec<Column>) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self { out, offset: 4, columns, rows: 0, groups: Vec::new() })
    }

    /// Rows that are not written yet.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// The next row: its values follow in the order of the columns.
    pub(super) fn row(&mut self) -> Row<'_> {
        self.rows += 1;
        Row { columns: self.columns.iter_mut() }
    }

    /// Writes the rows so far.
    pub(super) fn end_group(&mut self) -> io::Result<()> {
        let mut chunks = Vec::with_capacity(self.columns.len());
        for column in &mut self.columns {
            let page = column.take_page();
            let size = i64::try_from(page.len()).map_err(io::Error::other)?;
            let mut header = Thrift::default();
            // PageHeader: type DATA_PAGE, sizes, then a DataPageHeader: values, PLAIN, levels by RLE.
            header.int(1, 0);
            header.int(2, size);
            header.int(3, size);
            header.open(5);
            header.int(1, i64::try_from(self.rows).map_err(io::Error::other)?);
            header.int(2, 0);
            header.int(3, 3);
            header.int(4, 3);
            header.close();
            header.close();
            let bytes = header.bytes.len() as u64 + page.len() as u64;
            self.out.write_all(&header.bytes)?;
            self.out.write_all(&page)?;
            chunks.push((self.offset, bytes));
            self.offset += bytes;
        }
        self.groups.push(Group { rows: self.rows, chunks });
        self.rows = 0;
        Ok(())
    }

    /// Writes the rest and the footer.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.rows > 0 {
            self.end_group()?;
        }
        let footer = self.footer();
        self.out.write_all(&footer)?;
        self.out.write_all(&u32::try_from(footer.len()).map_err(io::Error::other)?.to_le_bytes())?;
        self.out.write_all(MAGIC)?;
        self.out.flush()
    }

    /// FileMetaData.
    fn footer(&self) -> Vec<u8> {
        let mut footer = Thrift::default();
        footer.int32(1, 1);
        footer.list(2, STRUCT, self.columns.len() + 1);
        footer.element();
        footer.text(4, "record");
        footer.int32(5, self.columns.len() as u64);
        footer.close();
        for column in &self.columns {
            footer.element();
            footer.int(1, column.kind.physical());
            footer.int(3, i64::from(column.optional));
            footer.text(4, column.name);
            if let Some(converted) = column.kind.converted() {
                footer.int(6, converted);
            }
            footer.close();
        }
        footer.long(3, self.groups.iter().map(|group| group.rows).sum());
        footer.list(4, STRUCT, self.groups.len());
        for group in &self.groups {
            footer.element();
            footer.list(1, STRUCT, group.chunks.len());
            for (column, (offset, bytes)) in self.columns.iter().zip(&group.chunks) {
                // ColumnChunk: where it is, then ColumnMetaData.
                footer.element();
                footer.long(2, *offset);
                footer.open(3);
                footer.int(1, column.kind.physical());
                footer.list(2, INT32, 2);
                footer.bytes.extend_from_slice(&[zigzag_byte(0), zigzag_byte(3)]);
                footer.list(3, BINARY, 1);
                footer.raw_text(column.name);
                footer.int(4, 0);
                footer.long(5, group.rows);
                footer.long(6, *bytes);
                footer.long(7, *bytes);
                footer.long(9, *offset);
                footer.close();
                footer.close();
            }
            footer.long(2, group.chunks.iter().map(|(_, bytes)| bytes).sum());
            footer.long(3, group.rows);
            footer.close();
        }
        footer.text(6, "penstock");
        footer.close();
        footer.bytes
    }
}

/// A row in the making.
pub(super) struct Row<'a> {
    columns: std::slice::IterMut<'a, Column>,
}

impl Row<'_> {
    pub(super) fn text(&mut self, value: Option<&str>) {
        self.bytes(value.map(str::as_bytes));
    }

    pub(super) fn int(&mut self, value: Option<u64>) {
        // What is above what Parquet's integers hold is none of our numbers.
        let value = value.map(|value| i64::try_from(value).unwrap_or(i64::MAX).to_le_bytes());
        self.bytes(value.as_ref().map(<[u8; 8]>::as_slice));
    }

    pub(super) fn bytes(&mut self, value: Option<&[u8]>) {
        if let Some(column) = self.columns.next() {
            column.add(value);
        }
    }
}

const INT32: u8 = 5;
const INT64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Thrift's compact protocol.
#[derive(Default)]
struct Thrift {
    bytes: Vec<u8>,
    /// The last field's number in the struct that is written, and below it those of the structs around.
    last: i64,
    around: Vec<i64>,
}

impl Thrift {
    fn field(&mut self, number: i64, kind: u8) {
        // Numbers rise by less than 16 in all that is written here.
        let rise = u8::try_from(number - self.last).unwrap_or(u8::MAX);
        self.bytes.push(rise << 4 | kind);
        self.last = number;
    }

    /// An i32 or an enum.
    fn int(&mut self, number: i64, value: i64) {
        self.field(number, INT32);
        varint(&mut self.bytes, zigzag(value));
    }

    fn int32(&mut self, number: i64, value: u64) {
        self.int(number, i64::try_from(value).unwrap_or(i64::MAX));
    }

    fn long(&mut self, number: i64, value: u64) {
        self.field(number, INT64);
        varint(&mut self.bytes, zigzag(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn text(&mut self, number: i64, value: &str) {
        self.field(number, BINARY);
        self.raw_text(value);
    }

    fn raw_text(&mut self, value: &str) {
        varint(&mut self.bytes, value.len() as u64);
        self.bytes.extend_from_slice(value.as_bytes());
    }

    fn list(&mut self, number: i64, kind: u8, length: usize) {
        self.field(number, LIST);
        match u8::try_from(length) {
            Ok(short) if short < 15 => self.bytes.push(short << 4 | kind),
            _ => {
                self.bytes.push(0xf0 | kind);
                varint(&mut self.bytes, length as u64);
            }
        }
    }

    /// A struct that is a field.
    fn open(&mut self, number: i64) {
        self.field(number, STRUCT);
        self.element();
    }

    /// A struct that is an element of a list.
    fn element(&mut self) {
        self.around.push(std::mem::take(&mut self.last));
    }

    fn close(&mut self) {
        self.bytes.push(0);
        self.last = self.around.pop().unwrap_or(0);
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn zigzag_byte(value: u8) -> u8 {
    value << 1
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_compact_protocol() {
        let encode = |value| {
            let mut bytes = Vec::new();
            varint(&mut bytes, zigzag(value));
            bytes
        };
        // From Thrift's specification.
        assert_eq!([encode(0), encode(-1), encode(1), encode(50_399)].concat(), [0, 1, 2, 0xbe, 0x93, 0x06]);
    }

    #[test]
    fn a_file_is_what_the_format_says_byte_by_byte() {
        let columns = vec![Column::required("n", Type::Int), Column::optional("t", Type::Text)];
        let mut out = Vec::new();
        let mut file = File::begin(&mut out, columns).unwrap();
        for (n, t) in [(1, Some("ab")), (2, None)] {
            let mut row = file.row();
            row.int(Some(n));
            row.text(t);
        }
        file.finish().unwrap();
        let n = [
            &[0x15, 0, 0x15, 32, 0x15, 32, 0x2c, 0x15, 4, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0][..],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let t = [
            &[0x15, 0, 0x15, 28, 0x15, 28, 0x2c, 0x15, 4, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0][..],
            &[4, 0, 0, 0, 2, 1, 2, 0],
            &[2, 0, 0, 0, b'a', b'b'],
        ]
        .concat();
        let begin = [MAGIC, n.as_slice(), t.as_slice()].concat();
        assert_eq!(&out[..begin.len()], begin);
        let footer = u32::from_le_bytes(out[out.len() - 8..out.len() - 4].try_into().unwrap()) as usize;
        assert_eq!(out.len(), begin.len() + footer + 8);
        assert_eq!(&out[out.len() - 4..], MAGIC);
    }
}
