//! envd's entry point: reads what the node says, finds its socket, and serves.
//!
//! As process 1 of a sandbox it gets its listening socket as descriptor 3 and its configuration on
//! standard input. Started by hand it binds the port itself and needs neither. Builds of templates
//! run it for what they do to files: see [`tool`].

mod boot;
mod cli;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use atoll_envd::{
    VERSION, identity, log,
    process::spawner,
    server::{Options, serve},
    tool,
};

use cli::Action;

/// Threads for file-system calls; each costs memory, and disks are not faster for more.
const BLOCKING_THREADS: usize = 8;

fn main() -> ExitCode {
    if let Some(code) = tool::run(std::env::args().skip(1)) {
        return code;
    }
    let result = match cli::parse(std::env::args().skip(1)) {
        Ok(Action::Serve { port }) => run(port),
        Ok(Action::Print(text)) => writeln!(io::stdout(), "{text}"),
        Err(message) => Err(io::Error::new(io::ErrorKind::InvalidInput, message)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "envd {VERSION}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(port: u16) -> io::Result<()> {
    // Before anything opens a descriptor: number 3 is the node's or nobody's.
    let inherited = boot::inherited_listener();
    boot::harden()?;
    // Before there are secrets or threads. Without it envd forks by itself.
    let spawner = spawner::fork().ok();
    let boot = boot::read_config()?;
    let listener = match inherited {
        Some(listener) => listener,
        None => boot::bind(port)?,
    };
    let open_files = boot::raise_open_files();
    identity::write(&boot.sandbox_id, &boot.template_id);
    if std::process::id() == 1 {
        if let Some(pipe) = boot::log_pipe() {
            log::open(pipe);
        }
        boot::detach_stdio();
    }
    log::info("envd", "envd started").text("version", VERSION).send();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    runtime.block_on(serve(Options { listener, boot, open_files, spawner }))
}
