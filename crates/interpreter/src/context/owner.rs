//! The task that has the kernel of a context, from the first to the last.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use super::{Control, Job, Reply, cell::close_stopped, environment::Environment};
use crate::{
    envd::Variables,
    home::{Home, KernelHome, sandbox_id},
    kernel::{self, Died, HIDDEN_TIMEOUT, Kernel, Launch},
    languages::{Dialect, Language, Runtime},
    log,
    patience::running_timeout,
};

/// Takes random numbers of a kernel out of step with those of its copies in other sandboxes, once it has
/// been told whether it has run a cell.
const RESEED_PYTHON: &str = "(lambda package: package and package.reseed(used=@USED@))\
    (__import__('sys').modules.get('atoll_kernel'))";

/// A kernel that runs, and what the owner knows of it.
pub(super) struct Running {
    // Before its directory: a kernel ends before that is removed.
    pub(super) kernel: Box<dyn Kernel>,
    environment: Environment,
    /// The sandbox it was started in, or made one of.
    sandbox: Option<String>,
    /// Whether it has run a cell.
    used: bool,
    _home: KernelHome,
}

/// Has the kernel of a context.
pub(super) struct Owner {
    home: Arc<Home>,
    language: Language,
    cwd: PathBuf,
    pub(super) running: Option<Running>,
    /// What the next execution is to say on standard error, a sentence.
    pub(super) notice: Option<String>,
}

/// What goes past the queue. It is heard whatever the owner does, and so not a part of it.
pub(super) type Controls = mpsc::UnboundedReceiver<Control>;

/// What kept the owner from finishing something.
pub(super) enum Stop {
    /// The kernel died, or does as if it had.
    Died(String),
    /// There was none, and none could be started.
    NotStarted(String),
    /// The context is to be restarted.
    Restart(Reply),
    /// The context was deleted.
    Delete,
}

impl From<Died> for Stop {
    fn from(Died(how): Died) -> Self {
        Self::Died(how)
    }
}

/// Whether the owner goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    GoOn,
    Leave,
}

impl Owner {
    pub(super) fn new(home: Arc<Home>, language: Language, cwd: PathBuf) -> Self {
        Self { home, language, cwd, running: None, notice: None }
    }

    /// Lives until the context is deleted.
    pub(super) async fn run(
        mut self,
        mut jobs: mpsc::UnboundedReceiver<Job>,
        mut controls: Controls,
        started: Reply,
    ) {
        let mut next = self.restart(started, &mut controls).await;
        while next == Next::GoOn {
            next = tokio::select! {
                biased;
                control = controls.recv() => self.control(control, &mut controls).await,
                job = jobs.recv() => match job {
                    Some(job) => self.cell(job, &mut controls).await,
                    None => Next::Leave,
                },
                how = idle(self.running.as_mut()) => {
                    self.lost(&how);
                    Next::GoOn
                }
            };
        }
        // Those that wait are not to wait for nobody, nor to look as if they had run.
        jobs.close();
        while let Ok(job) = jobs.try_recv() {
            close_stopped(&job.output, &Stop::Delete);
        }
    }

    /// Does what was asked for while no cell runs.
    async fn control(&mut self, control: Option<Control>, controls: &mut Controls) -> Next {
        match heed(control) {
            Ok(interrupted) => {
                let _ = interrupted.send(());
                Next::GoOn
            }
            Err(stop) => self.stopped(stop, controls).await,
        }
    }

    /// Does what something was stopped for.
    pub(super) async fn stopped(&mut self, stop: Stop, controls: &mut Controls) -> Next {
        match stop {
            Stop::Died(how) => {
                self.lost(&how);
                Next::GoOn
            }
            Stop::NotStarted(why) => {
                self.log_no_kernel(&why);
                Next::GoOn
            }
            Stop::Restart(reply) => self.restart(reply, controls).await,
            Stop::Delete => Next::Leave,
        }
    }

    /// Ends the kernel and starts another, in which everything is as at first; and yet another if that
    /// is asked for meanwhile, which all hear of who have asked.
    pub(super) async fn restart(&mut self, reply: Reply, controls: &mut Controls) -> Next {
        let mut replies = vec![reply];
        let result = loop {
            self.running = None;
            self.notice = None;
            match self.start(controls).await {
                Ok(()) => break Ok(()),
                Err(Stop::Died(why) | Stop::NotStarted(why)) => {
                    self.log_no_kernel(&why);
                    break Err(why);
                }
                Err(Stop::Restart(reply)) => replies.push(reply),
                Err(Stop::Delete) => return Next::Leave,
            }
        };
        for reply in replies {
            // Whoever has gone need not know.
            let _ = reply.send(result.clone());
        }
        Next::GoOn
    }

    fn log_no_kernel(&self, why: &str) {
        log(&format!("no {} kernel: {why}", self.language.name));
    }

    /// Starts a kernel if there is none that runs.
    pub(super) async fn start(&mut self, controls: &mut Controls) -> Result<(), Stop> {
        if let Some(running) = &self.running
            && let Some(how) = running.kernel.process().has_ended_or_will().await
        {
            self.lost(&how);
        }
        if self.running.is_some() {
            return Ok(());
        }
        let failed =
            |error: std::io::Error| Stop::NotStarted(format!("the kernel has no place: {error}"));
        let home = self.home.kernel().map_err(failed)?;
        let launch = Launch { cwd: self.cwd.clone(), dir: home.path().to_owned() };
        let sandbox = sandbox_id();
        let starting = kernel::start(&self.language, &launch, self.home.python_setup());
        tokio::pin!(starting);
        let kernel = loop {
            tokio::select! {
                biased;
                // There is nothing to interrupt.
                control = controls.recv() => drop(heed(control)?.send(())),
                started = &mut starting => break started,
            }
        };
        let kernel = kernel.map_err(|Died(why)| Stop::NotStarted(why))?;
        home.note(kernel.process().pid()).map_err(failed)?;
        let environment = Environment::new(self.language.dialect());
        self.running = Some(Running { kernel, environment, sandbox, used: false, _home: home });
        Ok(())
    }

    /// Makes of a kernel that came from another sandbox, with a snapshot, one of this. What a cell can
    /// have put into it stays.
    pub(super) async fn renew(
        &mut self,
        sandbox: Option<&String>,
        controls: &mut Controls,
    ) -> Result<(), Stop> {
        let Some(running) = self.running.as_mut() else { return Ok(()) };
        match (&running.sandbox, sandbox) {
            (Some(then), Some(now)) if then != now => {}
            _ => return Ok(()),
        }
        if self.language.dialect() == Dialect::Python {
            let used = if running.used { "True" } else { "False" };
            running.hidden(&RESEED_PYTHON.replace("@USED@", used), controls).await?;
        } else if !running.used && !matches!(self.language.runtime, Runtime::Jupyter(_)) {
            self.running = None;
            return self.start(controls).await;
        }
        running.sandbox = sandbox.cloned();
        Ok(())
    }

    /// The kernel ended while it had nothing to do.
    pub(super) fn lost(&mut self, how: &str) {
        log(&format!("a {} kernel was lost: {how}", self.language.name));
        self.running = None;
        self.notice = Some(restarted(how));
    }
}

/// What the next execution says after one whose kernel was lost without anybody hearing of it.
pub(super) fn restarted(how: &str) -> String {
    format!("Context was restarted: {how}. Its variables are gone.")
}

impl Running {
    /// Notes that it runs a cell: from now on somebody's work is in it.
    pub(super) fn use_it(&mut self) {
        if !std::mem::replace(&mut self.used, true) {
            self.kernel.process().spare();
        }
    }

    /// Gives it the sandbox's variables and a cell's own, and none else of those that it had been given.
    pub(super) async fn give(
        &mut self,
        sandboxes: &Variables,
        own: &Variables,
        controls: &mut Controls,
    ) -> Result<(), Stop> {
        match self.environment.change(sandboxes, own) {
            Some(code) => self.hidden(&code, controls).await,
            None => Ok(()),
        }
    }

    /// Runs a hidden cell. That it fails is not the fault of whoever waits.
    async fn hidden(&mut self, code: &str, controls: &mut Controls) -> Result<(), Stop> {
        let run = running_timeout(HIDDEN_TIMEOUT, self.try_hidden(code, controls)).await;
        run.unwrap_or_else(|| Err(kernel::late().into()))
    }

    /// Runs a hidden cell. One that was interrupted and failed is run anew: what was to be interrupted
    /// is what kept the kernel from it.
    async fn try_hidden(&mut self, code: &str, controls: &mut Controls) -> Result<(), Stop> {
        loop {
            self.kernel.begin(code, true).await?;
            let (mut failure, mut interrupted) = (None, false);
            loop {
                tokio::select! {
                    biased;
                    control = controls.recv() => {
                        let reply = heed(control)?;
                        self.kernel.interrupt().await;
                        interrupted = true;
                        let _ = reply.send(());
                    }
                    done = kernel::follow_hidden(self.kernel.as_mut(), &mut failure) => {
                        done?;
                        break;
                    }
                }
            }
            match failure {
                Some(_) if interrupted => {}
                Some(failure) => {
                    log(&format!("a hidden cell failed: {}: {}", failure.name, failure.value));
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
    }
}

/// What a control is to whoever does something: to be stopped, or else that an interrupt was asked for,
/// and who waits for that.
pub(super) fn heed(control: Option<Control>) -> Result<oneshot::Sender<()>, Stop> {
    match control {
        Some(Control::Interrupt(reply)) => Ok(reply),
        Some(Control::Restart(reply)) => Err(Stop::Restart(reply)),
        Some(Control::Delete) | None => Err(Stop::Delete),
    }
}

/// Lets a kernel be for as long as no cell runs, if there is one, and says how it ended.
async fn idle(running: Option<&mut Running>) -> String {
    match running {
        Some(running) => running.kernel.idle().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, pin::pin};

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tokio::time;

    use super::*;

    #[tokio::test]
    async fn a_hidden_cell_has_its_time_after_a_pause() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::create(directory.path()).unwrap().kernel().unwrap();
        let language = Language { name: "bash".to_owned(), runtime: Runtime::Bash };
        let launch = Launch { cwd: directory.path().into(), dir: home.path().into() };
        let mut running = Running {
            kernel: kernel::start(&language, &launch, "").await.unwrap(),
            environment: Environment::new(language.dialect()),
            sandbox: None,
            used: false,
            _home: home,
        };
        let go = directory.path().join("go");
        mknodat(CWD, &go, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (_sender, mut controls) = mpsc::unbounded_channel();
        let mut hidden = pin!(running.hidden("read line <go", &mut controls));
        assert!(futures::poll!(&mut hidden).is_pending());
        time::pause();
        time::advance(2 * HIDDEN_TIMEOUT).await;
        assert!(futures::poll!(&mut hidden).is_pending());
        time::resume();
        // Goes on when the cell has come to it.
        let written = tokio::task::spawn_blocking(|| fs::write(go, "\n"));
        let (done, written) = tokio::join!(hidden, written);
        assert!(done.is_ok() && written.unwrap().is_ok());
    }
}
