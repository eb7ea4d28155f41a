//! Runs a build script so that nothing of it outlives its purpose.
//!
//! The script runs in a PID namespace, so that killing its first process kills every other, and in
//! a mount namespace, so that its mounts vanish with it. The kernel kills it when the thread that
//! started it ends: a thread of its own, because the signal is tied to the thread, and the threads
//! of an async runtime come and go.

use std::{
    io::{self, BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tokio::sync::{mpsc, oneshot};

/// `script` of `/bin/sh`, as root, in mount, PID, UTS and IPC namespaces of its own.
pub(crate) fn isolated(script: &std::path::Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare", "--kill-child", "--fork", "--pid", "--mount"])
        .args(["--propagation", "private", "--uts", "--ipc", "/bin/sh"])
        .arg(script);
    command
}

/// A running script. Dropping it kills the script.
pub(crate) struct Job<T> {
    lines: mpsc::UnboundedReceiver<String>,
    done: oneshot::Receiver<io::Result<(T, ExitStatus)>>,
    child: Arc<Mutex<State>>,
}

enum State {
    Starting,
    Running(Child),
    /// Killed, or ended by itself.
    Over,
}

impl<T: Send + 'static> Job<T> {
    /// Starts `command`. It works on `held`, which is given back when the command has ended, and is
    /// dropped if by then nobody waits any more: never while the command still runs.
    pub(crate) fn start(mut command: Command, held: T) -> io::Result<Self> {
        let (sender, lines) = mpsc::unbounded_channel();
        let (finished, done) = oneshot::channel();
        let child = Arc::new(Mutex::new(State::Starting));
        let shared = Arc::clone(&child);
        command.stdin(Stdio::null()).process_group(0);
        thread::Builder::new().name("template-build".into()).spawn(move || {
            let result = run(command, &shared, &sender).map(|status| (held, status));
            // Nobody waits when the job was dropped.
            drop(finished.send(result));
        })?;
        Ok(Self { lines, done, child })
    }

    /// The next line that it prints on either stream; none when it has ended.
    pub(crate) async fn line(&mut self) -> Option<String> {
        self.lines.recv().await
    }

    /// Waits for its end.
    pub(crate) async fn finish(mut self) -> io::Result<(T, ExitStatus)> {
        (&mut self.done).await.unwrap_or_else(|_| Err(io::Error::other("the build thread failed")))
    }
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        let mut state = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // It is not yet waited for while it is in here, so the id is still its own.
        if let State::Running(child) = &mut *state
            && let Err(error) = child.kill()
        {
            tracing::warn!(%error, "cannot kill a template build");
        }
        if matches!(*state, State::Starting) {
            *state = State::Over;
        }
    }
}

fn run(
    mut command: Command,
    shared: &Mutex<State>,
    lines: &mpsc::UnboundedSender<String>,
) -> io::Result<ExitStatus> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    {
        let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Over) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        *state = State::Running(command.spawn()?);
    }
    // The command holds the writing ends, and the output ends when all are closed.
    drop(command);
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        // Nobody listens when the job was dropped; then this only waits for the end.
        drop(lines.send(text));
        line.clear();
    }
    let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *state, State::Over) {
        State::Running(mut child) => child.wait(),
        State::Starting | State::Over => Err(io::ErrorKind::Interrupted.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells when it is dropped.
    struct Held(mpsc::UnboundedSender<()>);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
        }
    }

    /// A script, in namespaces, and a file that all its processes hold a lock on.
    fn shell(text: &str) -> (tempfile::TempDir, Command) {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        let lock = dir.path().join("lock");
        let text = format!("exec 9> '{}'\nflock 9\n{text}\n", lock.display());
        std::fs::write(&script, text).unwrap();
        (dir, isolated(&script))
    }

    #[tokio::test]
    async fn both_streams_and_the_status_are_reported() {
        let (_dir, command) = shell("echo out; echo err >&2; exit 3");
        let mut job = Job::start(command, 7).unwrap();
        let mut lines = Vec::new();
        while let Some(line) = job.line().await {
            lines.push(line);
        }
        assert_eq!(lines, ["out", "err"]);
        let (held, status) = job.finish().await.unwrap();
        assert_eq!((held, status.code()), (7, Some(3)));
    }

    #[tokio::test]
    async fn a_dropped_job_kills_all_its_processes_before_it_lets_go() {
        let (dir, command) = shell("setsid sh -c 'trap \"\" TERM HUP; echo on; sleep 1000' & wait");
        let (dropped, mut drops) = mpsc::unbounded_channel();
        let mut job = Job::start(command, Held(dropped)).unwrap();
        assert_eq!(job.line().await.as_deref(), Some("on"));
        let locked = || {
            let lock = dir.path().join("lock");
            let status = Command::new("flock").arg("--nonblock").arg(lock).arg("true").status();
            !status.unwrap().success()
        };
        assert!(locked());
        assert!(drops.try_recv().is_err());
        drop(job);
        drops.recv().await.unwrap();
        assert!(!locked());
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_an_error() {
        let job = Job::start(Command::new("/nonexistent/program"), ()).unwrap();
        assert!(job.finish().await.is_err());
    }
}
