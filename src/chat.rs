//! `penstock chat`: a conversation in the terminal, over OpenAI's interface.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::Args;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::fault::Fault;
use crate::sse::Events;

/// The flags of `penstock chat`.
#[derive(Args)]
#[command(after_help = "Example:\n  penstock chat --temperature 0 'What is the capital of France?'")]
pub(crate) struct ChatArgs {
    /// What to say; left out, lines from standard input, each answered in turn
    message: Option<String>,
    /// The router's HTTP address
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "PENSTOCK_URL")]
    url: String,
    /// The key, where the router asks for one
    #[arg(long, env = "PENSTOCK_KEY", hide_env_values = true)]
    key: Option<String>,
    /// The model to talk to [default: the first that the router lists]
    #[arg(long, short, env = "PENSTOCK_MODEL")]
    model: Option<String>,
    /// Instructions that stand before the conversation
    #[arg(long, env = "PENSTOCK_SYSTEM")]
    system: Option<String>,
    /// 0 for the most likely answer [default: the model's own]
    #[arg(long, env = "PENSTOCK_TEMPERATURE")]
    temperature: Option<f64>,
    /// The longest answer, in tokens
    #[arg(long, env = "PENSTOCK_MAX_TOKENS")]
    max_tokens: Option<u32>,
}

/// Runs the conversation until the input ends.
pub(crate) async fn run(args: ChatArgs) -> Result<(), Fault> {
    let mut chat = Chat::open(args).await?;
    if let Some(message) = chat.args.message.take() {
        return chat.say(message).await;
    }
    let prompt = std::io::stdin().is_terminal();
    if prompt {
        eprintln!("talking to {}; Ctrl-D ends it", chat.model);
    }
    loop {
        if prompt {
            eprint!("> ");
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).map_err(Fault::failed)? == 0 {
            return Ok(());
        }
        if !line.trim().is_empty() {
            chat.say(line.trim().to_owned()).await?;
        }
    }
}

struct Chat {
    args: ChatArgs,
    http: reqwest::Client,
    model: String,
    messages: Vec<Value>,
}

impl Chat {
    async fn open(args: ChatArgs) -> Result<Self, Fault> {
        let http = reqwest::Client::builder().no_proxy().build().map_err(Fault::failed)?;
        let messages = args.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
        let mut chat = Self { http, model: String::new(), messages, args };
        chat.model = match chat.args.model.take() {
            Some(model) => model,
            None => chat.first_model().await?,
        };
        Ok(chat)
    }

    async fn first_model(&self) -> Result<String, Fault> {
        let response = self.send(self.http.get(self.at("/v1/models"))).await?;
        let body: Value =
            serde_json::from_str(&response.text().await.map_err(Fault::failed)?).map_err(Fault::failed)?;
        let first = body["data"][0]["id"].as_str();
        first.map(str::to_owned).ok_or_else(|| Fault::failed("the router serves no model yet"))
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.args.url.trim_end_matches('/'))
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Result<reqwest::Response, Fault> {
        if let Some(key) = &self.args.key {
            request = request.bearer_auth(key);
        }
        let unreachable = |error: reqwest::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_else(|| error.to_string());
            Fault::not_reachable(format!("{} does not answer: {cause}; is `penstock up` running?", self.args.url))
        };
        let response = request.send().await.map_err(unreachable)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body: Value = serde_json::from_str(&response.text().await.unwrap_or_default()).unwrap_or_default();
        let message = body["error"]["message"].as_str().unwrap_or("no reason given");
        let fault = if status.is_client_error() { Fault::bad_input } else { Fault::failed };
        Err(fault(format!("{status}: {message}")))
    }

    /// Says one thing and prints the answer as it comes.
    async fn say(&mut self, message: String) -> Result<(), Fault> {
        self.messages.push(json!({"role": "user", "content": message}));
        let mut body = json!({"model": self.model, "messages": self.messages, "stream": true});
        if let Some(temperature) = self.args.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = self.args.max_tokens {
            body["max_tokens"] = json!(max_tokens);
        }
        let request = self.http.post(self.at("/v1/chat/completions")).body(body.to_string());
        let mut stream = self.send(request).await?.bytes_stream();
        let (mut events, mut answer) = (Events::default(), String::new());
        while let Some(bytes) = stream.next().await {
            for data in events.push(&bytes.map_err(Fault::failed)?) {
                let text = delta(&data)?;
                print_now(&text)?;
                answer.push_str(&text);
            }
        }
        print_now("\n")?;
        self.messages.push(json!({"role": "assistant", "content": answer}));
        Ok(())
    }
}

/// The text of one event's data; none in the event that ends the stream.
fn delta(data: &str) -> Result<String, Fault> {
    if data == "[DONE]" {
        return Ok(String::new());
    }
    let chunk: Value = serde_json::from_str(data).map_err(Fault::failed)?;
    if let Some(message) = chunk["error"]["message"].as_str() {
        return Err(Fault::failed(format!("the answer broke off: {message}")));
    }
    Ok(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned())
}

fn print_now(text: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Fault::failed)
}

#[cfg(test)]
mod tests {
    use super::delta;

    #[test]
    fn events_of_a_stream_give_their_text() {
        assert_eq!(delta(r#"{"choices":[{"delta":{"content":"Paris"}}]}"#).unwrap(), "Paris");
        assert_eq!(delta(r#"{"choices":[{"delta":{"role":"assistant"}}]}"#).unwrap(), "");
        assert_eq!(delta("[DONE]").unwrap(), "");
        let error = delta(r#"{"error":{"message":"the worker is lost"}}"#).unwrap_err();
        assert!(error.to_string().contains("the worker is lost"));
    }
}
