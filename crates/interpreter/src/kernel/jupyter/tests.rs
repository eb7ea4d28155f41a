use std::process::Stdio;

use tokio::process::Command;
use zeromq::{DealerSocket, Socket, SubSocket};

use super::{message::Session, *};
use crate::kernel::soon;

/// A process with a cell that has run, but for what the kernel says of its end; nobody is connected.
fn kernel(directory: &tempfile::TempDir, script: &str) -> Jupyter {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::piped());
    let (shell, control) = (DealerSocket::new(), DealerSocket::new());
    Jupyter {
        process: Process::spawn(command).unwrap(),
        endpoints: Endpoints::ipc(directory.path()).unwrap(),
        channels: Channels { shell, iopub: SubSocket::new(), control },
        swollen: false,
        session: Session::new(),
        interrupt_mode: InterruptMode::Signal,
        cell: Cell { started: true, idle: true, ..Cell::default() },
    }
}

fn reply(json: serde_json::Value) -> Option<Reply> {
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn one_that_dies_after_a_large_message_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut kernel = kernel(&directory, "exit 3");
    kernel.swollen = true;
    kernel.cell.reply = reply(json!({"status": "ok"}));
    let died = soon(kernel.next()).await.unwrap_err();
    assert_eq!(died.0, "the kernel ended with exit code 3");
}

#[tokio::test]
async fn one_that_the_cell_ended_is_said_to_be_also_after_a_large_message() {
    let directory = tempfile::tempdir().unwrap();
    let mut kernel = kernel(&directory, "exit 0");
    kernel.swollen = true;
    kernel.cell.reply = reply(json!({"status": "ok", "payload": [{"source": "ask_exit"}]}));
    kernel.process.ended().await;
    let died = soon(kernel.next()).await.unwrap_err();
    assert_eq!(died.0, "the cell ended the kernel, as exit() does");
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_lacking_is_not_waited_for_anew_whenever_something_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let mut kernel = kernel(&directory, "read line");
    kernel.cell.interrupted = true;
    let (begun, mut events) = (Instant::now(), Vec::new());
    while events.len() < 2 {
        // Whoever waits for it does something else in between.
        events.extend(timeout(REPLY_TIMEOUT / 2, kernel.next()).await.ok());
        assert!(begun.elapsed() < 2 * REPLY_TIMEOUT, "{events:?}");
    }
    let [Ok(Event::Failed(failure)), Ok(Event::Done)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(failure.name, "ExecutionAborted");
}
