//! `penstock bench`: load against any OpenAI endpoint, and what its clients would have felt.

mod load;
mod report;
mod target;

use std::time::Duration;

use clap::Args;

use crate::fault::Fault;
use crate::output::{self, Format};
use load::{Arrivals, Load};
use report::{Report, Slo};
use target::Target;

const EXAMPLES: &str = "\
Examples:
  penstock bench --concurrency 8 --requests 64              eight clients, each asking as soon as it is answered
  penstock bench --rate 2.5 --duration 60                   2.5 requests a second on average, whatever the answers (Poisson)
  penstock bench --url http://127.0.0.1:9000 --model m -o json
  penstock bench --worker http://127.0.0.1:50061            the same load on a worker alone";

/// The flags of `penstock bench`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// The endpoint, without /v1
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "PENSTOCK_URL")]
    url: String,
    /// A worker to ask instead, without a router before it: what the router adds is the difference
    #[arg(long, value_name = "URL", conflicts_with_all = ["url", "key", "model"])]
    worker: Option<String>,
    /// The key, where it asks for one
    #[arg(long, env = "PENSTOCK_KEY", hide_env_values = true)]
    key: Option<String>,
    /// The model to ask for
    #[arg(long, short, default_value = "smollm2-135m", env = "PENSTOCK_MODEL")]
    model: String,
    /// Closed loop: so many clients, each asking again once it is answered
    #[arg(long, short, default_value_t = 1, conflicts_with = "rate")]
    concurrency: usize,
    /// Open loop: requests a second on average, arriving as a Poisson process
    #[arg(long)]
    rate: Option<f64>,
    /// How many requests in all [default: 16 a client, unless --duration is given]
    #[arg(long, short)]
    requests: Option<u64>,
    /// Sends no new request after so many seconds
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// About how long each prompt is; 3 in 4 words of it are one token
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    prompt_tokens: usize,
    /// How long each answer is; ends of text are ignored where the endpoint knows `ignore_eos`
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    max_tokens: u32,
    /// Asks only for what OpenAI's own API knows, for targets that refuse `ignore_eos`
    #[arg(long)]
    plain: bool,
    /// Lets every prompt begin with the same so many tokens
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    shared_prefix: usize,
    /// Requests sent before the measured ones
    #[arg(long, default_value_t = 1)]
    warmup: u64,
    /// A request is good if its first token came within this
    #[arg(long, default_value_t = 1000.0, value_name = "MS")]
    slo_ttft_ms: f64,
    /// ... and its mean gap between tokens was at most this
    #[arg(long, default_value_t = 100.0, value_name = "MS")]
    slo_gap_ms: f64,
    /// Draws prompts and arrivals
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs the load and prints the report.
pub(crate) async fn run(args: BenchArgs, format: Option<Format>) -> Result<(), Fault> {
    let arrivals = match args.rate {
        Some(rate) if rate.is_finite() && rate > 0.0 => Arrivals::Open { rate },
        Some(rate) => return Err(Fault::bad_input(format!("--rate {rate}: must be above 0"))),
        None if args.concurrency == 0 => return Err(Fault::bad_input("--concurrency must be at least 1")),
        None => Arrivals::Closed { clients: args.concurrency },
    };
    let requests = match (args.requests, args.duration) {
        (Some(requests), _) => requests,
        (None, Some(_)) => u64::MAX,
        (None, None) => 16 * args.concurrency as u64,
    };
    let duration = match args.duration {
        Some(seconds) => {
            Duration::try_from_secs_f64(seconds).map_err(|e| Fault::bad_input(format!("--duration: {e}")))?
        }
        None => Duration::MAX,
    };
    let target = match &args.worker {
        Some(url) => Target::worker(url).await?,
        None => Target::openai(&args.url, args.key, args.model, args.plain)?,
    };
    let load = Load {
        arrivals,
        requests,
        duration,
        prompt_tokens: args.prompt_tokens,
        shared_prefix: args.shared_prefix.min(args.prompt_tokens),
        max_tokens: args.max_tokens,
        seed: args.seed,
    };
    load.warm(&target, args.warmup).await?;
    let run = load.run(&target).await;
    let slo = Slo {
        ttft: Duration::from_secs_f64(args.slo_ttft_ms / 1e3),
        gap: Duration::from_secs_f64(args.slo_gap_ms / 1e3),
    };
    let report = Report::of(&run, slo);
    match Format::or_default(format) {
        Format::Json | Format::Yaml => output::json(&report)?,
        Format::Table => report.print()?,
    }
    if report.ok == 0 {
        let why = run.samples.iter().find_map(|sample| sample.problem.clone()).unwrap_or_default();
        return Err(Fault::failed(format!("no request was answered: {why}")));
    }
    Ok(())
}
