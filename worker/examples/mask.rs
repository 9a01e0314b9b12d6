//! What constraints cost for a model's tokens: `mask MODEL.gguf` compiles some ordinary ones and walks through words of
//! each, chosen at random; prints the time to compile, and of a mask with its token: the mean, the 99th percentile and
//! the longest.

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a measuring tool prints and takes the time")]

use std::path::Path;
use std::time::{Duration, Instant};

use penstock_engine::weights::{Summary, Weights};
use penstock_worker::constraint::{Compiler, Constraint};
use penstock_worker::tokenizer::TextSide;

type Failure = Box<dyn std::error::Error>;

/// Words walked through, and tokens of one at most.
const WORDS: u64 = 20;
const TOKENS: usize = 120;

const PERSON: &str = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":30},"age":{"type":"integer",
    "minimum":0,"maximum":120},"tags":{"type":"array","items":{"type":"string"},"maxItems":5}},
    "required":["name","age"],"additionalProperties":false}"#;
const TREE: &str = r##"{"$defs":{"tree":{"type":"object","properties":{"value":{"type":"number"},"kids":{"type":"array",
    "items":{"$ref":"#/$defs/tree"}}},"required":["value","kids"],"additionalProperties":false}},"$ref":"#/$defs/tree"}"##;

fn main() -> Result<(), Failure> {
    let model = std::env::args().nth(1).ok_or("usage: mask MODEL.gguf")?;
    let weights = Weights::open(Path::new(&model))?;
    let text = TextSide::from_gguf(weights.metadata())?;
    let tokenizer = text.files.iter().find(|file| file.name == "tokenizer.json").ok_or("no tokenizer.json")?;
    let vocab_size = Summary::new(&weights)?.vocab_size;
    let begin = Instant::now();
    let compiler = Compiler::new(&tokenizer.bytes, vocab_size, &text.eos_token_ids)?;
    println!("at load          {:8.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    for (name, constraint) in [
        ("any object", Constraint::JsonSchema(r#"{"type":"object"}"#.into())),
        ("person", Constraint::JsonSchema(PERSON.into())),
        ("tree", Constraint::JsonSchema(TREE.into())),
        ("regex", Constraint::Regex(r"[A-Z][a-z]{1,9}( [A-Z][a-z]{1,9}){0,20}".into())),
        ("choice", Constraint::Regex("positive|negative|neutral".into())),
        ("any text", Constraint::Regex("(?s:.)*".into())),
    ] {
        let begin = Instant::now();
        runtime.block_on(compiler.compile(constraint.clone(), Vec::new()))?;
        let compile = begin.elapsed();
        let mut times = Vec::new();
        for word in 0..WORDS {
            let mut grammar = runtime.block_on(compiler.compile(constraint.clone(), Vec::new()))?;
            let mut random = fastrand::Rng::with_seed(word);
            for _ in 0..TOKENS {
                let begin = Instant::now();
                let allowed = grammar.allowed()?;
                let mask = begin.elapsed();
                let ids: Vec<u32> =
                    (0..vocab_size as u32).filter(|id| allowed[*id as usize / 32] >> (id % 32) & 1 == 1).collect();
                let Some(id) = random.choice(ids) else { break };
                if text.eos_token_ids.contains(&id) {
                    break;
                }
                let begin = Instant::now();
                grammar.accept(id)?;
                times.push(mask + begin.elapsed());
            }
        }
        report(name, compile, times);
    }
    Ok(())
}

fn report(name: &str, compile: Duration, mut times: Vec<Duration>) {
    times.sort();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let mean = times.iter().sum::<Duration>() / times.len().max(1) as u32;
    let p99 = times[times.len().saturating_sub(1) * 99 / 100];
    println!(
        "{name:12} compile {:7.1} ms   mask mean {:7.1} µs  p99 {:8.1} µs  longest {:8.1} µs  ({} tokens)",
        compile.as_secs_f64() * 1e3,
        micros(mean),
        micros(p99),
        micros(*times.last().unwrap_or(&mean)),
        times.len()
    );
}
