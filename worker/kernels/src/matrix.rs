//! Weight matrices: rows are outputs, columns are inputs. A row of a product depends on its own row of the input alone,
//! to the bit, however many rows there are and on however many threads.

mod dense;
mod panels;
mod plain;

use std::ops::Range;

use crate::cpu::{Cpu, grown};
use crate::format::Format;
use crate::isa::Kernel;
use crate::lanes::{LANES, Lanes};
use crate::rows::{Input, Output};
use crate::shared::Shared;
use crate::threads::{Pieces, Worker};
use dense::Dense;
use panels::{Panels, Sink};
use plain::Plain;

pub(crate) use panels::Activation;

/// Why bytes are no matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Rows must have whole blocks.
    #[error("rows of {cols} elements are no whole number of {format} blocks")]
    Columns {
        /// Elements of a row.
        cols: usize,
        /// The format.
        format: Format,
    },
    /// The bytes are not those of a matrix of this shape.
    #[error("{len} bytes are no whole number of {format} rows of {cols} elements")]
    Bytes {
        /// Bytes given.
        len: usize,
        /// Elements of a row.
        cols: usize,
        /// The format.
        format: Format,
    },
}

/// Weights, `[rows, cols]`, in parts of one format each.
pub struct Matrix {
    parts: Vec<Part>,
    rows: usize,
    cols: usize,
}

struct Part {
    /// Its first row in the matrix.
    start: usize,
    weights: Weights,
}

enum Weights {
    Dense(Dense),
    Panels(Panels),
    Plain(Plain),
}

impl Matrix {
    /// A matrix of `cols` columns whose rows are those of `parts`, one part after another: each ggml blocks of a format.
    pub fn new(cols: usize, parts: &[(Format, &[u8])]) -> Result<Self, Error> {
        let mut matrix = Self { parts: Vec::with_capacity(parts.len()), rows: 0, cols };
        for run in parts.chunk_by(|a, b| a.0 == b.0) {
            let format = run[0].0;
            let row_bytes = format.row_bytes(cols).ok_or(Error::Columns { cols, format })?;
            for (_, bytes) in run {
                if row_bytes == 0 || !bytes.len().is_multiple_of(row_bytes) {
                    return Err(Error::Bytes { len: bytes.len(), cols, format });
                }
            }
            let slices: Vec<&[u8]> = run.iter().map(|part| part.1).collect();
            let part = Part { start: matrix.rows, weights: Weights::new(format, cols, &slices) };
            matrix.rows += part.weights.rows();
            matrix.parts.push(part);
        }
        Ok(matrix)
    }

    /// Length of an output row.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of an input row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory that the weights take.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.weights.bytes()).sum()
    }

    /// Writes row `index` to `out` `[cols]` as f32.
    ///
    /// # Panics
    /// Where there is no such row, or `out` has another length.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows && out.len() == self.cols, "row {index} of [{}, {}]", self.rows, self.cols);
        let part = self.parts.iter().rfind(|part| part.start <= index).expect("the first part starts at 0");
        part.weights.row(index - part.start, out);
    }

    /// The product of the input's rows `[m, cols]` with the transposed matrix, `[m, rows]`.
    ///
    /// # Panics
    /// Where the slices do not fit the matrix.
    pub fn multiply(&self, cpu: &mut Cpu, input: Input<'_>, output: Output<'_>) {
        let m = input.rows(self.cols);
        let (out, add) = match output {
            Output::Store(out) => (out, false),
            Output::Add(out) => (out, true),
        };
        assert_eq!(out.len(), m * self.rows, "the output of {m} rows does not fit [{}, {}]", self.rows, self.cols);
        let words = self.parts.iter().map(|part| part.weights.activation_words()).max().unwrap_or(0);
        let blocks = Activation::blocks(self.cols);
        let threads = cpu.threads.count();
        cpu.scratch.pieces.clear();
        for part in &self.parts {
            cpu.scratch.pieces.push(Pieces::new(m, threads));
            cpu.scratch.pieces.push(Pieces::new(part.weights.units(), threads));
        }
        let product = Product {
            matrix: self,
            input,
            m,
            values: Shared::new(grown(&mut cpu.scratch.values, m * self.cols)),
            activations: Shared::new(grown(&mut cpu.scratch.activations, m * blocks)),
            words: Shared::new(grown(&mut cpu.scratch.words, m * words)),
            pieces: &cpu.scratch.pieces,
            out: Shared::new(out),
            add,
        };
        let isa = cpu.isa;
        cpu.threads.run(&|worker| isa.run(ProductPart { product: &product, worker }));
    }
}

impl Weights {
    fn new(format: Format, cols: usize, parts: &[&[u8]]) -> Self {
        let panels = Panels::new(format, cols, parts).map(Self::Panels);
        let dense = || Dense::new(format, cols, parts).map(Self::Dense);
        panels.or_else(dense).unwrap_or_else(|| Self::Plain(Plain::new(format, cols, parts)))
    }

    fn rows(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.rows(),
            Self::Panels(panels) => panels.rows(),
            Self::Plain(plain) => plain.rows(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.bytes(),
            Self::Panels(panels) => panels.bytes(),
            Self::Plain(plain) => plain.bytes(),
        }
    }

    fn row(&self, index: usize, out: &mut [f32]) {
        match self {
            Self::Dense(dense) => dense.row(index, out),
            Self::Panels(panels) => panels.row(index, out),
            Self::Plain(plain) => plain.row(index, out),
        }
    }

    /// What threads share: panels or rows.
    fn units(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.count(),
            Self::Panels(panels) => panels.count(),
            Self::Plain(plain) => plain.rows(),
        }
    }

    /// Words that a row of input takes in the form of ggml.
    fn activation_words(&self) -> usize {
        match self {
            Self::Dense(_) | Self::Panels(_) => 0,
            Self::Plain(plain) => plain.activation_words(),
        }
    }
}

/// Rows in ggml's blocks as f32.
pub(crate) fn decode_rows(format: Format, bytes: &[u8], out: &mut [f32]) {
    Plain::new(format, out.len(), &[bytes]).row(0, out);
}

/// A product while its threads work on it.
struct Product<'a> {
    matrix: &'a Matrix,
    input: Input<'a>,
    /// Rows of the input.
    m: usize,
    /// The input's rows `[m, cols]`.
    values: Shared<'a, f32>,
    /// The input's rows as panels want them.
    activations: Shared<'a, Activation>,
    /// The input's rows as a part in ggml's form wants them.
    words: Shared<'a, u64>,
    /// For each part, the input's rows, then the part's units.
    pieces: &'a [Pieces],
    /// `[m, rows]`.
    out: Shared<'a, f32>,
    /// Whether the product is added to the output.
    add: bool,
}

struct ProductPart<'a> {
    product: &'a Product<'a>,
    worker: Worker<'a>,
}

impl Kernel for ProductPart<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { product, worker } = self;
        let mut before = None;
        for (part, [rows, units]) in product.matrix.parts.iter().zip(product.pieces.as_chunks().0) {
            if let Some(before) = before {
                worker.wait(before);
            }
            let share = Share { worker, rows, units, part, first: before.is_none() };
            match &part.weights {
                Weights::Dense(dense) => product.dense::<L>(&share, dense),
                Weights::Panels(panels) => product.panels::<L>(&share, panels),
                Weights::Plain(plain) => product.plain::<L>(&share, plain),
            }
            before = Some(units);
        }
    }
}

/// What a thread needs to take its share of a part.
struct Share<'a> {
    worker: Worker<'a>,
    rows: &'a Pieces,
    units: &'a Pieces,
    part: &'a Part,
    /// Whether it is the matrix's first part, which takes the input's rows in.
    first: bool,
}

impl Product<'_> {
    #[inline(always)]
    fn dense<L: Lanes>(&self, share: &Share<'_>, dense: &Dense) {
        let Share { worker, rows, units, .. } = *share;
        let cols = self.matrix.cols;
        let mut piece = worker.next(rows, None);
        while let Some(range) = piece {
            if share.first {
                for row in range.clone() {
                    // SAFETY: each row belongs to one piece.
                    self.input.row::<L>(row, unsafe { self.values.slice(row * cols, cols) });
                }
            }
            piece = worker.next(rows, Some(range));
        }
        worker.wait(rows);
        // SAFETY: values are written in the first part's rows alone, which are done.
        let input = unsafe { &self.values.all()[..self.m * cols] };
        let mut piece = worker.next(units, None);
        while let Some(range) = piece {
            dense.multiply::<L>(input, range.clone(), &Columns { product: self, start: share.part.start });
            piece = worker.next(units, Some(range));
        }
    }

    #[inline(always)]
    fn panels<L: Lanes>(&self, share: &Share<'_>, panels: &Panels) {
        let Share { worker, rows, units, .. } = *share;
        let cols = self.matrix.cols;
        let blocks = Activation::blocks(cols);
        let mut piece = worker.next(rows, None);
        while let Some(range) = piece {
            for row in range.clone() {
                // SAFETY: each row belongs to one piece, and the part before is done.
                let (values, to) =
                    unsafe { (self.values.slice(row * cols, cols), self.activations.slice(row * blocks, blocks)) };
                if share.first {
                    self.input.row::<L>(row, values);
                }
                Activation::quantise::<L>(values, to);
            }
            piece = worker.next(rows, Some(range));
        }
        worker.wait(rows);
        // SAFETY: nobody writes activations before this part is done.
        let input = unsafe { &self.activations.all()[..self.m * blocks] };
        let mut piece = worker.next(units, None);
        while let Some(range) = piece {
            panels.multiply::<L>(input, range.clone(), &Columns { product: self, start: share.part.start });
            piece = worker.next(units, Some(range));
        }
    }

    #[inline(always)]
    fn plain<L: Lanes>(&self, share: &Share<'_>, plain: &Plain) {
        let Share { worker, rows, units, .. } = *share;
        let (cols, words) = (self.matrix.cols, plain.activation_words());
        let mut piece = worker.next(rows, None);
        while let Some(range) = piece {
            for row in range.clone() {
                // SAFETY: each row belongs to one piece, and the part before is done.
                let (values, to) =
                    unsafe { (self.values.slice(row * cols, cols), self.words.slice(row * words, words)) };
                if share.first {
                    self.input.row::<L>(row, values);
                }
                plain.activate(values, to);
            }
            piece = worker.next(rows, Some(range));
        }
        worker.wait(rows);
        // SAFETY: nobody writes activations before this part is done.
        let input = unsafe { self.words.all() };
        let mut piece = worker.next(units, None);
        while let Some(range) = piece {
            for t in 0..self.m {
                // SAFETY: each output column belongs to one piece.
                let out = unsafe { self.out.slice(t * self.matrix.rows + share.part.start + range.start, range.len()) };
                plain.multiply(range.start, &input[t * words..][..words], out, self.add);
            }
            piece = worker.next(units, Some(range));
        }
    }
}

/// The output's columns of a part that starts at row `start` of the matrix.
struct Columns<'a> {
    product: &'a Product<'a>,
    start: usize,
}

impl Sink for Columns<'_> {
    #[inline(always)]
    fn put<L: Lanes>(&self, t: usize, rows: Range<usize>, sums: L) {
        let Product { matrix, out, add, .. } = *self.product;
        // SAFETY: each panel, and so each column of the output, belongs to one thread.
        let out = unsafe { out.slice(t * matrix.rows + self.start + rows.start, rows.len()) };
        if let Some(out) = out.first_chunk_mut::<LANES>() {
            if add { sums.add(L::load(out)) } else { sums }.store(out);
            return;
        }
        let mut last = [0.0; LANES];
        sums.store(&mut last);
        for (out, sum) in out.iter_mut().zip(last) {
            *out = if add { sum + *out } else { sum };
        }
    }
}

#[cfg(test)]
mod tests;
