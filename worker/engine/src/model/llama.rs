//! The Llama family: pre-norm decoder layers with grouped-query attention, rotary positions and a gated feed-forward
//! network, without biases; an output head of its own or the embeddings'.

use penstock_kernels::attention::{self, KvPool, Rows, Span, Step};
use penstock_kernels::{Cpu, Input, Matrix, Output};

use super::{CausalLm, Config};
use crate::batch::Batch;
use crate::weights::{Error, Order, Weights};

/// A Llama decoder.
pub(super) struct Llama {
    config: Config,
    embeddings: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// None where the embeddings serve.
    head: Option<Matrix>,
    buffers: Buffers,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Queries, keys, values, one below another.
    qkv: Matrix,
    output: Matrix,
    feed_norm: Vec<f32>,
    /// The gate above, the up projection below.
    gate_up: Matrix,
    down: Matrix,
}

/// Rows between the operations of a step; they grow to the largest step and stay.
#[derive(Default)]
struct Buffers {
    hidden: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    wanted: Vec<f32>,
    logits: Vec<f32>,
    tables: Vec<u32>,
    spans: Vec<Span>,
    angles: Vec<[f32; 2]>,
}

impl Llama {
    /// Takes every tensor of the file.
    pub(super) fn load(weights: &Weights) -> Result<Self, Error> {
        let config = Config::new(weights)?;
        let (width, vocab) = (config.width, config.vocab_size);
        let embeddings = weights.matrix(width, &[("token_embd.weight", vocab, Order::Stored)])?;
        let layers = (0..config.layers).map(|layer| Layer::load(weights, &config, layer)).collect::<Result<_, _>>()?;
        let norm = weights.vector("output_norm.weight", width)?;
        let head = if weights.has("output.weight") {
            Some(weights.matrix(width, &[("output.weight", vocab, Order::Stored)])?)
        } else {
            None
        };
        weights.finish()?;
        Ok(Self { config, embeddings, layers, norm, head, buffers: Buffers::default() })
    }
}

impl Layer {
    fn load(weights: &Weights, config: &Config, layer: usize) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let Config { width, inner, heads, .. } = *config;
        let (queries, keys) = (heads.query * heads.size, heads.kv * heads.size);
        let (q, k, v) = (name("attn_q"), name("attn_k"), name("attn_v"));
        let order = Order::Halves { head: heads.size, rotated: heads.rotated };
        let qkv = [(&q[..], queries, order), (&k, keys, order), (&v, keys, Order::Stored)];
        let gate_up = [(&name("ffn_gate")[..], inner, Order::Stored), (&name("ffn_up"), inner, Order::Stored)];
        Ok(Self {
            attention_norm: weights.vector(&name("attn_norm"), width)?,
            qkv: weights.matrix(width, &qkv)?,
            output: weights.matrix(queries, &[(&name("attn_output"), width, Order::Stored)])?,
            feed_norm: weights.vector(&name("ffn_norm"), width)?,
            gate_up: weights.matrix(width, &gate_up)?,
            down: weights.matrix(inner, &[(&name("ffn_down"), width, Order::Stored)])?,
        })
    }
}

impl CausalLm for Llama {
    fn config(&self) -> &Config {
        &self.config
    }

    fn bytes(&self) -> usize {
        let layer = |l: &Layer| l.qkv.bytes() + l.output.bytes() + l.gate_up.bytes() + l.down.bytes();
        let head = self.head.as_ref().map_or(0, Matrix::bytes);
        self.embeddings.bytes() + head + self.layers.iter().map(layer).sum::<usize>()
    }

    fn forward(&mut self, cpu: &mut Cpu, pool: &mut KvPool, batch: &Batch) -> &mut [f32] {
        let Self { config, embeddings, layers, norm, head, buffers } = self;
        let epsilon = config.epsilon;
        buffers.prepare(config, batch);
        let Buffers { hidden, qkv, attended, gate_up, wanted, logits, tables, spans, angles } = buffers;
        for (row, &token) in hidden.chunks_exact_mut(config.width).zip(&batch.tokens) {
            embeddings.row(token as usize, row);
        }
        let window = config.window;
        let step = Step { positions: &batch.positions, slots: &batch.slots, tables, spans, angles, window };
        for (i, layer) in layers.iter().enumerate() {
            let normed = Input::Normed { x: hidden, weight: &layer.attention_norm, epsilon };
            layer.qkv.multiply(cpu, normed, Output::Store(qkv));
            attention::attend(cpu, pool, i, &step, Rows { qkv, out: attended });
            layer.output.multiply(cpu, Input::Plain(attended), Output::Add(hidden));
            let normed = Input::Normed { x: hidden, weight: &layer.feed_norm, epsilon };
            layer.gate_up.multiply(cpu, normed, Output::Store(gate_up));
            layer.down.multiply(cpu, Input::Gated(gate_up), Output::Add(hidden));
        }
        wanted.clear();
        for segment in &batch.segments {
            let rows = segment.rows.end - segment.logits..segment.rows.end;
            wanted.extend_from_slice(&hidden[rows.start * config.width..rows.end * config.width]);
        }
        let normed = Input::Normed { x: wanted, weight: norm, epsilon };
        head.as_ref().unwrap_or(embeddings).multiply(cpu, normed, Output::Store(logits));
        logits
    }
}

impl Buffers {
    fn prepare(&mut self, config: &Config, batch: &Batch) {
        let (rows, heads) = (batch.tokens.len(), config.heads);
        self.hidden.resize(rows * config.width, 0.0);
        self.qkv.resize(rows * heads.width(), 0.0);
        self.attended.resize(rows * heads.query * heads.size, 0.0);
        self.gate_up.resize(rows * 2 * config.inner, 0.0);
        self.logits.resize(batch.logit_rows() * config.vocab_size, 0.0);
        self.tables.clear();
        self.tables.extend(batch.block_tables.iter().map(|block| block.0));
        self.spans.clear();
        let spans = batch.segments.iter().filter(|segment| !segment.rows.is_empty());
        self.spans.extend(spans.map(|segment| Span { rows: segment.rows.clone(), blocks: segment.blocks.clone() }));
        self.angles.clear();
        for &position in &batch.positions {
            self.angles.extend(config.frequencies.iter().map(|frequency| {
                let (sin, cos) = (f64::from(position) * frequency).sin_cos();
                [cos as f32, sin as f32]
            }));
        }
    }
}

#[cfg(test)]
mod tests;
