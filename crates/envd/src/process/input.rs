//! What clients type: a pipe to standard input, or a terminal.

use std::{io, os::fd::OwnedFd, sync::Arc};

use atoll_wire::rpc::process::__buffa::view::oneof::process_input::Input as Typed;
use connectrpc::ConnectError;
use rustix::{io::Errno, termios::Winsize};
use tokio::{io::unix::AsyncFd, sync::Mutex};

/// Where a process's input goes. Writers take turns, in the order in which they came.
pub enum Input {
    /// A pipe; none once it is closed, or if the process was started without one.
    Pipe(Mutex<Option<AsyncFd<OwnedFd>>>),
    /// A terminal; the lock keeps concurrent input in one piece.
    Terminal(Arc<AsyncFd<OwnedFd>>, Mutex<()>),
}

impl Input {
    /// Writes all of it, waiting while the process does not read. When the caller gives up, what
    /// was written stays written.
    ///
    /// # Errors
    /// `internal` when the process has no such input, or has closed it; `unimplemented` for input
    /// of no kind.
    pub async fn write(&self, input: Option<&Typed<'_>>) -> Result<(), ConnectError> {
        match (self, input) {
            (Self::Pipe(pipe), Some(Typed::Stdin(data))) => {
                let pipe = pipe.lock().await;
                let Some(pipe) = pipe.as_ref() else {
                    return Err(stdin_error("stdin not enabled or closed"));
                };
                write_all(pipe, data).await.map_err(stdin_error)
            }
            (Self::Terminal(terminal, turn), Some(Typed::Pty(data))) => {
                let _turn = turn.lock().await;
                write_all(terminal, data).await.map_err(tty_error)
            }
            (Self::Terminal(..), Some(Typed::Stdin(_))) => {
                Err(stdin_error("process has a terminal, send pty input"))
            }
            (Self::Pipe(_), Some(Typed::Pty(_))) => {
                Err(tty_error("process was started without a terminal"))
            }
            (_, None) => Err(ConnectError::unimplemented("invalid input type")),
        }
    }

    /// Closes standard input after what is being written. Closing it again does nothing.
    ///
    /// # Errors
    /// `unknown` for a terminal, which has no end of input but a typed Ctrl-D.
    pub async fn close(&self) -> Result<(), ConnectError> {
        match self {
            Self::Pipe(pipe) => {
                *pipe.lock().await = None;
                Ok(())
            }
            Self::Terminal(..) => Err(ConnectError::unknown(
                "error closing stdin: not possible for a terminal, send Ctrl+D (0x04) instead",
            )),
        }
    }

    /// Changes the size of the terminal, which tells its programs.
    ///
    /// # Errors
    /// `internal` without a terminal.
    pub fn resize(&self, size: Winsize) -> Result<(), ConnectError> {
        let failed = |why: &str| ConnectError::internal(format!("error resizing tty: {why}"));
        match self {
            Self::Terminal(terminal, _) => rustix::termios::tcsetwinsize(terminal.get_ref(), size)
                .map_err(|error| failed(&error.to_string())),
            Self::Pipe(_) => Err(failed("tty not assigned to process")),
        }
    }
}

fn stdin_error(why: impl std::fmt::Display) -> ConnectError {
    ConnectError::internal(format!("error writing to stdin: {why}"))
}

fn tty_error(why: impl std::fmt::Display) -> ConnectError {
    ConnectError::internal(format!("error writing to tty: {why}"))
}

async fn write_all(target: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = target.writable().await?;
        match rustix::io::write(target.get_ref(), data) {
            Ok(written) => data = &data[written..],
            Err(Errno::WOULDBLOCK) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
