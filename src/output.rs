//! How commands print data: tables for people, JSON for scripts.

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde::Serialize;

use crate::fault::Fault;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns.
    Table,
    /// One JSON value.
    Json,
    /// YAML, where a command has it; otherwise JSON, which is YAML too.
    Yaml,
}

impl Format {
    /// The asked one, else a table on a terminal and JSON in a pipe.
    pub(crate) fn or_default(asked: Option<Self>) -> Self {
        match asked {
            Some(format) => format,
            None if std::io::stdout().is_terminal() => Self::Table,
            None => Self::Json,
        }
    }
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Fault> {
    let text = serde_json::to_string_pretty(value).map_err(Fault::failed)?;
    line(&text)
}

/// Prints rows under their header, columns aligned.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> Result<(), Fault> {
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).chain([header[i].len()]).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let render = |cells: [&str; N]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    line(&render(header))?;
    for row in rows {
        line(&render(std::array::from_fn(|i| row[i].as_str())))?;
    }
    Ok(())
}

/// Prints a line; a reader that has gone is no failure.
pub(crate) fn line(text: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Fault::failed(error)),
        _ => Ok(()),
    }
}

/// A number of bytes for people: 96.6 MiB.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_are_readable() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(96 << 20), "96.0 MiB");
        assert_eq!(bytes(3 << 39), "1.5 TiB");
    }
}
