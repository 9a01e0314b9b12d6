//! Every metric family of a worker, read from the engine whenever somebody gathers them.

use penstock_engine::stats::Histogram;
use penstock_engine::{Engine, Load, Stats};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Registry, proto};

/// The worker's families over its engine's figures.
pub struct Metrics {
    engine: Engine,
    model: String,
    descriptions: Vec<Desc>,
}

impl Metrics {
    /// Registers the families of a worker that serves `model`.
    ///
    /// # Errors
    ///
    /// A family of the same name is registered already.
    pub fn register(registry: &Registry, engine: Engine, model: String) -> Result<(), prometheus::Error> {
        let mut metrics = Self { engine, model, descriptions: Vec::new() };
        for family in metrics.collect() {
            let labels = family.get_metric().first().map_or(&[][..], |metric| metric.get_label());
            let labels = labels.iter().map(|label| label.name().to_owned()).collect();
            let (name, help) = (family.name().to_owned(), family.help().to_owned());
            metrics.descriptions.push(Desc::new(name, help, labels, Default::default())?);
        }
        registry.register(Box::new(metrics))
    }

    fn penstock(&self, load: &Load, stats: &Stats) -> Vec<MetricFamily> {
        let blocks = load.kv_blocks;
        let states = [("running", stats.running), ("waiting", load.waiting), ("paused", stats.paused)];
        let kv = [("used", blocks.used), ("cached", blocks.cached), ("free", blocks.free)];
        let phases = [
            ("schedule", &stats.schedule_seconds),
            ("execute", &stats.execute_seconds),
            ("sample", &stats.sample_seconds),
            ("commit", &stats.commit_seconds),
        ];
        let seconds = stats
            .compute_seconds
            .iter()
            .map(|(tenant, seconds)| counter(&[("model", &self.model), ("tenant", &tenant.0)], *seconds));
        vec![
            family("penstock_sequences", "Sequences by state.", MetricType::GAUGE)
                .with(states.map(|(state, count)| gauge(&[("state", state)], count as f64))),
            family("penstock_kv_blocks", "Blocks of the KV pool by state.", MetricType::GAUGE)
                .with(kv.map(|(state, count)| gauge(&[("state", state)], count as f64))),
            family(
                "penstock_prefix_cache_tokens_total",
                "Prompt tokens by whether a cache held them.",
                MetricType::COUNTER,
            )
            .with(
                [("hit", stats.cached_tokens), ("miss", stats.prompt_tokens - stats.cached_tokens)]
                    .map(|(result, tokens)| counter(&[("result", result)], tokens as f64)),
            ),
            family("penstock_step_duration_seconds", "Duration of a step's phases.", MetricType::HISTOGRAM)
                .with(phases.map(|(phase, seconds)| histogram(&[("phase", phase)], seconds))),
            family("penstock_batch_tokens", "Rows of a step's batch.", MetricType::HISTOGRAM)
                .with([histogram(&[], &stats.batch_tokens)]),
            family(
                "penstock_preemptions_total",
                "Sequences that lost their blocks or seat to another one.",
                MetricType::COUNTER,
            )
            .with([counter(&[], stats.preemptions as f64)]),
            family("penstock_output_tokens_total", "Tokens drawn.", MetricType::COUNTER)
                .with([counter(&[], stats.output_tokens as f64)]),
            family(
                "penstock_predicted_wait_seconds",
                "What a new sequence would wait for its first step.",
                MetricType::GAUGE,
            )
            .with([gauge(&[], load.predicted_wait)]),
            family(
                "penstock_gpu_seconds_total",
                "Seconds of the device by whom they were spent for.",
                MetricType::COUNTER,
            )
            .with(seconds),
        ]
    }

    /// The names that the Gateway API inference extension and common autoscaling recipes read.
    fn vllm(&self, load: &Load) -> Vec<MetricFamily> {
        let blocks = load.kv_blocks;
        let total = (blocks.used + blocks.cached + blocks.free).max(1);
        let model = [("model_name", self.model.as_str())];
        let no_adapters = [("max_lora", "0"), ("running_lora_adapters", ""), ("waiting_lora_adapters", "")];
        let now = penstock_proto::time::unix_now().as_secs_f64();
        vec![
            family("vllm:num_requests_running", "Sequences with a seat.", MetricType::GAUGE)
                .with([gauge(&model, load.running as f64)]),
            family("vllm:num_requests_waiting", "Sequences without a seat.", MetricType::GAUGE)
                .with([gauge(&model, load.waiting as f64)]),
            family("vllm:kv_cache_usage_perc", "Share of the KV pool in use; 1 is all of it.", MetricType::GAUGE)
                .with([gauge(&model, blocks.used as f64 / total as f64)]),
            family("vllm:lora_requests_info", "Adapters in use; the value is the time now.", MetricType::GAUGE)
                .with([gauge(&no_adapters, now)]),
        ]
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (load, stats) = (self.engine.load(), self.engine.stats());
        let mut families = self.penstock(&load, &stats);
        families.extend(self.vllm(&load));
        families
    }
}

/// A family whose metrics are still to come.
struct Family(MetricFamily);

fn family(name: &str, help: &str, kind: MetricType) -> Family {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    Family(family)
}

impl Family {
    fn with(mut self, metrics: impl IntoIterator<Item = Metric>) -> MetricFamily {
        self.0.set_metric(metrics.into_iter().collect());
        self.0
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let (mut metric, mut gauge) = (labelled(labels), Gauge::default());
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

fn counter(labels: &[(&str, &str)], value: f64) -> Metric {
    let (mut metric, mut counter) = (labelled(labels), Counter::default());
    counter.set_value(value);
    metric.set_counter(counter);
    metric
}

fn histogram(labels: &[(&str, &str)], values: &Histogram) -> Metric {
    let bucket = |(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    };
    let (mut metric, mut histogram) = (labelled(labels), proto::Histogram::default());
    histogram.set_bucket(values.buckets().map(bucket).collect());
    histogram.set_sample_count(values.count());
    histogram.set_sample_sum(values.sum());
    metric.set_histogram(histogram);
    metric
}
