//! How a job's progress looks: a bar on a terminal, plain lines otherwise.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use gnomon_terms::{Bytes, BytesPerSecond};
use indicatif::{ProgressBar, ProgressStyle};

use crate::api::types::{JobView, Progress};

/// A log is read by people and by grep: one line every two seconds is enough to see that it goes on.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows progress on the error output, so that the standard output stays for results.
pub enum Reporter {
    /// A bar.
    Bar(ProgressBar),
    /// Lines, with what was said last.
    Lines(LastLine),
    /// Nothing: the caller reads JSON.
    Silent,
}

/// What was said last, so that nothing is said twice.
#[derive(Default)]
pub struct LastLine {
    phase: String,
    at: Option<Instant>,
}

impl Reporter {
    /// The way that fits where the error output goes.
    pub fn new(json: bool) -> Reporter {
        match (json, stderr().is_terminal()) {
            (true, _) => Reporter::Silent,
            (false, true) => Reporter::Bar(bar()),
            (false, false) => Reporter::Lines(LastLine::default()),
        }
    }

    /// Shows where the job is.
    pub fn show(&mut self, view: &JobView) {
        match self {
            Reporter::Silent => {}
            Reporter::Bar(bar) => {
                bar.set_length(view.progress.total_bytes);
                bar.set_position(view.progress.done_bytes);
                bar.set_message(words(&view.progress));
                if view.state.is_over() {
                    bar.finish_and_clear();
                }
            }
            Reporter::Lines(last) => last.show(&view.progress, Instant::now()),
        }
    }
}

impl LastLine {
    fn show(&mut self, progress: &Progress, now: Instant) {
        let is_new = self.phase != progress.phase;
        let is_due = self.at.is_none_or(|at| now.duration_since(at) >= LINE_EVERY);
        if is_new || is_due {
            eprintln!("{}", line(progress));
            self.phase.clone_from(&progress.phase);
            self.at = Some(now);
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:30}] {binary_bytes}/{binary_total_bytes} {wide_msg}");
    let bar = ProgressBar::no_length();
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn line(progress: &Progress) -> String {
    match progress.total_bytes {
        0 => words(progress),
        total => {
            let share = 100.0 * progress.done_bytes as f64 / total as f64;
            format!("{} {share:.0}% of {}", words(progress), Bytes(total))
        }
    }
}

fn words(progress: &Progress) -> String {
    let mut text = progress.phase.clone();
    if progress.rate > 0 {
        text = format!("{text} {}", BytesPerSecond(progress.rate));
    }
    if let Some(eta) = progress.eta_s {
        text = format!("{text}, {eta:.0} s left");
    }
    match progress.message.is_empty() {
        true => text,
        false => format!("{text}: {}", progress.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_known_and_no_more() {
        let mut progress = Progress { phase: "prime".to_string(), ..Progress::default() };
        assert_eq!(line(&progress), "prime");
        progress = Progress { done_bytes: 512, total_bytes: 2048, rate: 1024, eta_s: Some(1.5), ..progress };
        progress.message = "copying".to_string();
        assert_eq!(line(&progress), "prime 1.0 KiB/s, 2 s left: copying 25% of 2.0 KiB");
    }
}
