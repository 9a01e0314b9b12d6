//! `penstock explain` and `penstock session`: why a request goes where it goes, and the class that an operator gives a
//! session.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use penstock_cluster::catalog::Moment;
use penstock_proto::DataClass;
use penstock_proto::admin::{ExplainDecidedRequest, ExplainRequest, SetSessionClassRequest};
use serde_json::{Value, json};

use crate::apply::read_sources;
use crate::fault::Fault;
use crate::output::Format;
use crate::remote::ServerArgs;
use crate::{Global, output};

const EXPLAIN: &str = "\
Examples:
  penstock explain --tenant retail --model assistant
  penstock explain --tenant retail --model assistant --prompt 'my card is 4111 1111 1111 1111'
  penstock explain --tenant retail --model assistant --class public --task support --prompt-file letter.txt
  penstock explain 01KB1Z0V9M3Q8R6T2W4X5Y7ZAB     the x-penstock-request-id of an answer of this router

It names the class and what raised it (the detector, not the text), and of each target why it may be called or not, with
its ceiling and the line of the catalogue that sets it. The prompt is searched and kept nowhere.

Exit codes: 0 done, 1 failed, 2 bad usage, an unknown tenant or request, 3 the router is not reachable.";

/// The flags of `penstock explain`.
#[derive(Args)]
#[command(after_help = EXPLAIN)]
pub(crate) struct ExplainArgs {
    /// A request that the router has had: the x-penstock-request-id of its answer
    #[arg(conflicts_with_all = ["tenant", "model", "class", "task", "session", "stream", "prompt", "prompt_file"])]
    request_id: Option<String>,
    /// Who asks; not needed where the catalogue has no tenants
    #[arg(long, default_value = "")]
    tenant: String,
    /// For what
    #[arg(long, required_unless_present = "request_id")]
    model: Option<String>,
    /// The class that the request asks for, as x-penstock-class
    #[arg(long)]
    class: Option<DataClass>,
    /// What it is for, as x-penstock-task
    #[arg(long, default_value = "")]
    task: String,
    /// Whose turn it is, as x-penstock-session
    #[arg(long, default_value = "")]
    session: String,
    /// As for an answer that is streamed
    #[arg(long)]
    stream: bool,
    /// What it says
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// A file that holds what it says; - is standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

const SESSION: &str = "\
Examples:
  penstock session retail 7f3a --class restricted

Requests of the tenant with x-penstock-session: 7f3a have this class at least, on every router, for 24 hours. Said again it
counts anew. `penstock up` forgets it when it ends.

Exit codes: 0 done, 1 failed, 2 bad usage or an unknown tenant, 3 the router is not reachable.";

/// The flags of `penstock session`.
#[derive(Args)]
#[command(after_help = SESSION)]
pub(crate) struct SessionArgs {
    /// Whose session it is
    tenant: String,
    /// The session, as x-penstock-session names it
    session: String,
    /// The least class of its requests: public, internal, confidential, restricted
    #[arg(long)]
    class: DataClass,
    #[command(flatten)]
    server: ServerArgs,
}

/// Prints a decision and why it is so.
pub(crate) async fn explain(args: ExplainArgs, global: &Global) -> Result<(), Fault> {
    let prompt = match (args.prompt, args.prompt_file) {
        (Some(prompt), _) => prompt,
        (None, Some(file)) => read_sources("--prompt-file", &[file])?.remove(0).text,
        (None, None) => String::new(),
    };
    let mut router = args.server.connect(global).await?;
    let answer = match args.request_id {
        Some(request_id) => {
            let request = router.authorized(ExplainDecidedRequest { request_id });
            router.client.explain_decided(request).await
        }
        None => {
            let request = router.authorized(ExplainRequest {
                tenant: args.tenant,
                model: args.model.unwrap_or_default(),
                class: args.class.map(|class| class.to_string()).unwrap_or_default(),
                task: args.task,
                session: args.session,
                stream: args.stream,
                prompt,
            });
            router.client.explain(request).await
        }
    };
    let explanation = answer.map_err(|status| router.failed(&status))?.into_inner();
    match Format::or_default(global.output) {
        Format::Table => output::line(explanation.text.trim_end()),
        Format::Json | Format::Yaml => {
            let value: Value = serde_json::from_str(&explanation.json).map_err(Fault::failed)?;
            output::json(&value)
        }
    }
}

/// Gives a session a class.
pub(crate) async fn session(args: SessionArgs, global: &Global) -> Result<(), Fault> {
    let mut router = args.server.connect(global).await?;
    let SessionArgs { tenant, session, class, .. } = args;
    let asked = SetSessionClassRequest { tenant: tenant.clone(), session: session.clone(), class: class.to_string() };
    let request = router.authorized(asked);
    let set = router.client.set_session_class(request).await.map_err(|status| router.failed(&status))?.into_inner();
    let until = Moment::at(Duration::from_secs(set.until));
    match Format::or_default(global.output) {
        Format::Table => output::line(&format!("session {session} of {tenant} has the class {class} until {until}")),
        Format::Json | Format::Yaml => {
            output::json(&json!({"tenant": tenant, "session": session, "class": class, "until": until}))
        }
    }
}
