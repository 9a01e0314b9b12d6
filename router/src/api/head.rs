//! What a request's head says beside its path: ids, class, deadline, priority.

use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use penstock_proto::{DataClass, Priority, RequestId, headers};
use tokio::time::Instant;

use crate::request::Failure;

/// The longest id of a client's that is echoed.
const CLIENT_ID_LIMIT: usize = 128;
/// The longest session and task.
const WORD_LIMIT: usize = 128;
/// The longest deadline: a day.
const DEADLINE_LIMIT_MS: u64 = 24 * 60 * 60 * 1000;

/// A request's head, read.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) id: RequestId,
    /// The least that the data is to be taken for.
    pub(super) class: Option<DataClass>,
    pub(super) priority: Priority,
    pub(super) deadline: Instant,
    /// What keeps its arm of a split.
    pub(super) session: Option<String>,
    /// A free word for rules; empty where there is none.
    pub(super) task: String,
}

/// What a request has that does not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) deadline: Duration,
    pub(super) priority: Priority,
}

/// The client's own id, where it has one that can be echoed: up to 128 visible ASCII characters.
pub(super) fn client_id(map: &HeaderMap) -> Option<HeaderValue> {
    let id = map.get(headers::REQUEST_ID)?;
    let bytes = id.as_bytes();
    let sane = !bytes.is_empty() && bytes.len() <= CLIENT_ID_LIMIT && bytes.iter().all(u8::is_ascii_graphic);
    sane.then(|| id.clone())
}

/// Reads the head of a request that came `now`.
pub(super) fn read(map: &HeaderMap, id: RequestId, now: Instant, defaults: Defaults) -> Result<Head, Failure> {
    let classes = words::<DataClass>(map, headers::CLASS)?.collect::<Result<Vec<_>, _>>()?;
    let priority = words::<Priority>(map, headers::PRIORITY)?.next().transpose()?.unwrap_or(defaults.priority);
    let deadline = match text(map, headers::DEADLINE_MS)?.next() {
        None => defaults.deadline,
        Some(value) => Duration::from_millis(millis(value)?),
    };
    let session = word(map, headers::SESSION)?;
    let task = word(map, headers::TASK)?.unwrap_or_default();
    Ok(Head { id, class: classes.into_iter().max(), priority, deadline: now + deadline, session, task })
}

/// The one value of a header: short, visible ASCII.
fn word(map: &HeaderMap, name: &'static str) -> Result<Option<String>, Failure> {
    match text(map, name)?.next() {
        None => Ok(None),
        Some(value) if !value.is_empty() && value.len() <= WORD_LIMIT => Ok(Some(value.to_owned())),
        Some(_) => Err(Failure::field(name, format!("{name} must have 1 to {WORD_LIMIT} characters"))),
    }
}

/// gRPC's own deadline: up to eight digits and a unit. A longer one than ours is cut to ours.
pub(super) fn grpc_timeout(map: &HeaderMap) -> Result<Option<Duration>, Failure> {
    const NAME: &str = "grpc-timeout";
    let Some(value) = map.get(NAME) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.split_at_checked(text.len().saturating_sub(1))).and_then(
        |(digits, unit)| {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
            let count: u64 = digits.parse().ok().filter(|_| plain)?;
            match unit {
                "H" => Some(Duration::from_secs(count * 3600)),
                "M" => Some(Duration::from_secs(count * 60)),
                "S" => Some(Duration::from_secs(count)),
                "m" => Some(Duration::from_millis(count)),
                "u" => Some(Duration::from_micros(count)),
                "n" => Some(Duration::from_nanos(count)),
                _ => None,
            }
        },
    );
    let timeout = parsed.ok_or_else(|| Failure::field(NAME, format!("{NAME} must be up to 8 digits and a unit")))?;
    Ok(Some(timeout.min(Duration::from_millis(DEADLINE_LIMIT_MS))))
}

fn millis(value: &str) -> Result<u64, Failure> {
    let millis = value.parse().ok().filter(|millis| (1..=DEADLINE_LIMIT_MS).contains(millis));
    millis.ok_or_else(|| {
        let message = format!("{} must be a whole number from 1 to {DEADLINE_LIMIT_MS}", headers::DEADLINE_MS);
        Failure::field(headers::DEADLINE_MS, message)
    })
}

/// The values of a header, one at least readable or none at all.
fn text<'a>(map: &'a HeaderMap, name: &'static str) -> Result<impl Iterator<Item = &'a str> + use<'a>, Failure> {
    let values: Result<Vec<&str>, _> = map.get_all(name).iter().map(HeaderValue::to_str).collect();
    let values = values.map_err(|_| Failure::field(name, format!("{name} must be visible ASCII")))?;
    Ok(values.into_iter().map(str::trim))
}

fn words<'a, T>(
    map: &'a HeaderMap,
    name: &'static str,
) -> Result<impl Iterator<Item = Result<T, Failure>> + use<'a, T>, Failure>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    let parse = move |value: &str| value.parse().map_err(|error| Failure::field(name, format!("{name}: {error}")));
    Ok(text(map, name)?.map(parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn read_at(now: Instant, headers: &[(&'static str, &str)]) -> Result<Head, Failure> {
        let defaults = Defaults { deadline: Duration::from_secs(600), priority: Priority::Interactive };
        read(&map(headers), RequestId::generate(), now, defaults)
    }

    #[tokio::test]
    async fn of_two_classes_the_higher_counts() {
        let class = |headers: &[(&'static str, &str)]| read_at(Instant::now(), headers).unwrap().class;
        assert_eq!(class(&[]), None);
        assert_eq!(class(&[("x-penstock-class", "public")]), Some(DataClass::Public));
        let both = [("x-penstock-class", "restricted"), ("x-penstock-class", "confidential")];
        assert_eq!(class(&both), Some(DataClass::Restricted));
    }

    #[tokio::test]
    async fn a_deadline_is_the_clients_or_the_default() {
        let now = Instant::now();
        assert_eq!(read_at(now, &[]).unwrap().deadline, now + Duration::from_secs(600));
        let head = read_at(now, &[("x-penstock-deadline-ms", "250")]).unwrap();
        assert_eq!(head.deadline, now + Duration::from_millis(250));
    }

    #[tokio::test]
    async fn a_session_and_a_task_are_short_words() {
        let head = read_at(Instant::now(), &[("x-penstock-session", "s1"), ("x-penstock-task", "summarise")]).unwrap();
        assert_eq!((head.session.as_deref(), head.task.as_str()), (Some("s1"), "summarise"));
        let long = "x".repeat(129);
        for value in ["", &long] {
            let failure = read_at(Instant::now(), &[("x-penstock-session", value)]).unwrap_err();
            assert_eq!(failure.param.as_deref(), Some("x-penstock-session"));
        }
    }

    #[tokio::test]
    async fn a_bad_value_is_refused_under_its_headers_name() {
        for (name, value) in [
            ("x-penstock-class", "secret"),
            ("x-penstock-priority", "urgent"),
            ("x-penstock-deadline-ms", "0"),
            ("x-penstock-deadline-ms", "-5"),
            ("x-penstock-deadline-ms", "1e3"),
            ("x-penstock-deadline-ms", "99999999999999999999"),
        ] {
            let failure = read_at(Instant::now(), &[(name, value)]).unwrap_err();
            assert_eq!(failure.param.as_deref(), Some(name), "{value}");
        }
    }

    #[test]
    fn a_grpc_timeout_has_a_unit_and_a_limit() {
        let timeout = |value: &str| grpc_timeout(&map(&[("grpc-timeout", value)])).map_err(|it| it.param.unwrap());
        assert_eq!(grpc_timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(timeout("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(timeout("2M"), Ok(Some(Duration::from_secs(120))));
        assert_eq!(timeout("5u"), Ok(Some(Duration::from_micros(5))));
        assert_eq!(timeout("99999999H"), Ok(Some(Duration::from_secs(24 * 3600))));
        for value in ["", "m", "5", "-5m", "+5m", "5 m", "123456789m", "5x"] {
            assert_eq!(timeout(value), Err("grpc-timeout".to_owned()), "{value:?}");
        }
    }

    #[test]
    fn a_sane_id_is_echoed() {
        let echoed = |id: &str| client_id(&map(&[("x-request-id", id)])).is_some();
        assert!(echoed("a-b_c:1") && echoed(&"x".repeat(128)));
        assert!(!echoed("") && !echoed("a b") && !echoed(&"x".repeat(129)));
    }
}
