//! Streams of events with names.

use serde_json::Value;

use crate::support::Answer;

/// Every event of a stream to its end: name and data.
pub(crate) async fn events(mut answer: Answer) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    while let Some(event) = answer.event().await {
        let (name, data) = event.split_once('\n').unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name, "an event's data repeats its name");
        events.push((name, data));
    }
    events
}

/// The names of events, each once where several follow each other.
pub(crate) fn names(events: &[(String, Value)]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    names
}
