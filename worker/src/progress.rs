//! The bar of a pull, on a terminal only.

use std::io::IsTerminal;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::artifact::{Progress, Report};

/// Draws a pull's progress on standard error where that is a terminal, and nothing elsewhere.
pub fn bar(name: &str) -> Report {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(None, target).with_prefix(name.to_owned());
    bar.set_style(style("{spinner} {prefix} {msg} {bytes}"));
    Arc::new(move |progress| draw(&bar, progress))
}

fn draw(bar: &ProgressBar, progress: Progress) {
    match progress {
        Progress::Waiting => bar.set_message("waits for another pull"),
        Progress::Downloading => bar.set_message("pip download"),
        Progress::Started { total: Some(total) } => {
            bar.set_length(total);
            bar.set_message("");
            bar.set_style(style("{prefix} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}"));
        }
        Progress::Started { total: None } => bar.set_message(""),
        Progress::Advanced { written } => bar.set_position(written),
        Progress::Retrying { attempt, reason } => bar.set_message(format!("retry {attempt}: {reason}")),
        Progress::Done => return bar.finish_and_clear(),
    }
    bar.tick();
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates of this file are well formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_a_pull_can_be_drawn() {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        draw(&bar, Progress::Waiting);
        draw(&bar, Progress::Downloading);
        draw(&bar, Progress::Started { total: None });
        draw(&bar, Progress::Started { total: Some(10) });
        draw(&bar, Progress::Advanced { written: 4 });
        draw(&bar, Progress::Retrying { attempt: 1, reason: "HTTP 503".into() });
        assert_eq!((bar.position(), bar.length(), bar.message().as_str()), (4, Some(10), "retry 1: HTTP 503"));
        draw(&bar, Progress::Done);
        assert!(bar.is_finished());
    }
}
