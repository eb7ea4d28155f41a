//! What people see: messages, progress, logs.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{io::IsTerminal, sync::Mutex, sync::PoisonError, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;

/// Logs go to standard error; `RUST_LOG` chooses what.
pub(crate) fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// A line on standard output.
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// A failure, on standard error.
pub(crate) fn fail(text: &str) {
    eprintln!("atoll: {text}");
}

/// Progress of something slow: a bar on a terminal, a line a step elsewhere.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    last: Mutex<String>,
}

impl Progress {
    pub(crate) fn new(title: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1000);
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} [{bar:32}] {percent:>3}% {msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() {
            say(title);
        }
        Self { bar, last: Mutex::default() }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl atoll_template::Progress for Progress {
    fn step(&self, fraction: f32, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position((fraction.clamp(0.0, 1.0) * 1000.0) as u64);
                bar.set_message(what.to_owned());
            }
            None => {
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                if *last != what {
                    say(&format!("  {:>3.0}%  {what}", fraction * 100.0));
                    *last = what.to_owned();
                }
            }
        }
    }

    fn line(&self, text: &str) {
        tracing::debug!(target: "atoll::build", "{text}");
    }
}
