//! What people see: messages, progress, logs; and, through a [`Filter`], what sandboxes print.

mod filter;

use std::{
    io::{IsTerminal, Write},
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;

pub(crate) use self::filter::Filter;

/// What a shell reports for a program that Ctrl-C ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// Logs go to standard error; `RUST_LOG` chooses what.
pub(crate) fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// A line on standard output.
pub(crate) fn say(text: &str) {
    // Whoever read this may have left; what is being done goes on.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What is for people only, not for a program that reads standard output.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A failure, on standard error.
pub(crate) fn fail(text: &str) {
    let _ = writeln!(std::io::stderr(), "atoll: {text}");
}

/// A line that a sandbox may have written, with what could steer the terminal made visible.
pub(crate) fn harmless(text: &str) -> String {
    let printable = |character: char| {
        let escaped = character.is_control().then(|| character.escape_default());
        escaped.map_or_else(|| character.to_string(), |escaped| escaped.to_string())
    };
    text.chars().map(printable).collect()
}

/// Progress of something slow: a bar on a terminal, a line a step elsewhere; nothing if it turns out
/// that nothing has to be done.
pub(crate) struct Progress {
    title: String,
    display: OnceLock<Display>,
}

enum Display {
    Bar(ProgressBar),
    Lines { last: Mutex<String> },
}

impl Progress {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), display: OnceLock::new() }
    }

    fn display(&self) -> &Display {
        self.display.get_or_init(|| {
            if !std::io::stderr().is_terminal() {
                say(&self.title);
                return Display::Lines { last: Mutex::default() };
            }
            let bar = ProgressBar::new(1000);
            let template = "{prefix} [{bar:32}] {percent:>3}% {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(self.title.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
            Display::Bar(bar)
        })
    }

    pub(crate) fn finish(&self) {
        if let Some(Display::Bar(bar)) = self.display.get() {
            bar.finish_and_clear();
        }
    }
}

impl atoll_template::Progress for Progress {
    fn step(&self, fraction: f32, what: &str) {
        match self.display() {
            Display::Bar(bar) => {
                bar.set_position((fraction.clamp(0.0, 1.0) * 1000.0) as u64);
                bar.set_message(what.to_owned());
            }
            Display::Lines { last } => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if *last != what {
                    say(&format!("  {:>3.0}%  {what}", fraction * 100.0));
                    what.clone_into(&mut last);
                }
            }
        }
    }

    fn line(&self, text: &str) {
        tracing::debug!(target: "atoll::build", "{text}");
    }
}
