//! From a start request to a forked child.

use std::{
    collections::BTreeMap,
    env, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use atoll_wire::rpc::process::{ProcessConfig, StartRequest};
use connectrpc::ConnectError;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Rlimit, geteuid},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{Mutex, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::{
    Live, Process,
    input::Input,
    output::{Fanout, Stream, watch},
    spawn::{self, Command, Credentials, DEFAULT_PATH, Descriptors, SetupError, Stdio},
    spawner::Spawner,
};
use crate::{
    guest::Guest,
    paths,
    reaper::{Exit, Reaper},
    users::User,
};

/// How much of a command line an error message quotes.
const QUOTED: usize = 1024;

/// Processes with this tag belong to the sandbox, not to its users: they share envd's control group.
const SYSTEM_TAG: &str = "_system";

/// A descriptor of ours, in the event loop.
type Watched = AsyncFd<OwnedFd>;

/// A forked child and our ends of everything.
pub struct Launched {
    /// The process.
    pub live: Live,
    /// Whether it got as far as exec.
    pub report: Report,
    /// How it ends.
    pub exit: oneshot::Receiver<Exit>,
    /// What it writes to.
    pub outputs: Vec<(Stream, Arc<Watched>)>,
}

/// Our end of the pipe on which a child reports a failure before exec.
pub struct Report(Watched);

impl Report {
    /// Waits until the child has executed the command, or could not be set up.
    pub async fn read(self) -> Option<SetupError> {
        let mut report = [0; 5];
        loop {
            let mut ready = self.0.readable().await.ok()?;
            match rustix::io::read(self.0.get_ref(), &mut report) {
                Ok(length) => return SetupError::from_report(&report[..length]),
                Err(Errno::WOULDBLOCK) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// A request to start a process, with all that does not depend on the kernel decided.
pub struct Launch {
    config: ProcessConfig,
    tag: Option<String>,
    terminal: Option<Winsize>,
    stdin: bool,
    cwd: PathBuf,
    env: Vec<(String, String)>,
    user: User,
}

impl Launch {
    /// Resolves what the request leaves to the sandbox: directory, environment, user.
    ///
    /// # Errors
    /// `invalid_argument` without a process, or for a working directory that does not exist.
    pub fn new(request: StartRequest, user: User, guest: &Guest) -> Result<Self, ConnectError> {
        let config = request
            .process
            .into_option()
            .ok_or_else(|| ConnectError::invalid_argument("process is required"))?;
        let workdir = guest.default_workdir();
        let cwd = config.cwd.as_deref().unwrap_or_default();
        let cwd = paths::resolve(cwd, &user, workdir.as_deref())
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
        if matches!(cwd.metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            let message = format!("cwd '{}' does not exist", cwd.display());
            return Err(ConnectError::invalid_argument(message));
        }
        let env = environment(&user, guest, &config);
        let terminal = request.pty.as_option().map(|pty| window_size(pty.size.cols, pty.size.rows));
        let stdin = request.stdin.unwrap_or(true);
        Ok(Self { config, tag: request.tag, terminal, stdin, cwd, env, user })
    }

    /// How errors name the process.
    pub fn description(&self) -> String {
        let mut command = self.config.cmd.clone();
        for arg in &self.config.args {
            if command.len() > QUOTED {
                command.push_str(" ...");
                break;
            }
            command.push(' ');
            command.push_str(arg);
        }
        match &self.terminal {
            None => format!("error starting process '{command}'"),
            Some(size) => format!(
                "error starting pty with command '{command}' in dir '{}' with '{}' cols and '{}' rows",
                self.cwd.display(),
                size.ws_col,
                size.ws_row,
            ),
        }
    }

    /// Starts the process. A failure leaves nothing behind.
    ///
    /// Not to be dropped before its end: what has been asked of the spawner will be done.
    ///
    /// # Errors
    /// Those of the kernel, for [`error_of`].
    pub async fn start(
        self,
        reaper: &Reaper,
        spawner: Option<&Spawner>,
        open_files: Option<Rlimit>,
    ) -> io::Result<Launched> {
        let (report, child_report) = pipe_with(PipeFlags::CLOEXEC)?;
        let report = Report(watch(report)?);
        let Streams { stdio, input, outputs } = match self.terminal {
            Some(size) => Streams::terminal(size, &self.user)?,
            None => Streams::pipes(self.stdin)?,
        };
        let command = Command {
            program: self.config.cmd.clone(),
            args: self.config.args.clone(),
            env: self.env,
            cwd: self.cwd,
            credentials: credentials(&self.user),
            open_files: open_files.map(Into::into),
        };
        let descriptors = Descriptors { report: child_report, stdio };
        let spawner = spawner.filter(|_| self.tag.as_deref() != Some(SYSTEM_TAG));
        let (child, exit) = match spawner {
            Some(spawner) => spawner.spawn(reaper, &command, &descriptors).await?,
            None => reaper.spawn(|| spawn::spawn(&command, &descriptors))?,
        };
        // Ours to read is the end of what the child holds.
        drop(descriptors);
        let process = Arc::new(Process {
            child,
            tag: self.tag,
            output: Fanout::default(),
            killed: CancellationToken::new(),
            end: OnceLock::new(),
            ended: CancellationToken::new(),
        });
        let live = Live { process, config: Arc::new(self.config), input: Arc::new(input) };
        Ok(Launched { live, report, exit, outputs })
    }
}

/// Why a process did not start.
#[derive(Debug)]
pub enum StartError {
    /// It was not forked.
    Fork(io::Error),
    /// It did not get as far as exec.
    SetUp(SetupError),
}

/// Turns a failure to start into what the client is told.
pub fn error_of(error: StartError, description: &str) -> ConnectError {
    let (error, message) = match error {
        StartError::Fork(error) => {
            let message = format!("{description}: {error}");
            (error, message)
        }
        StartError::SetUp(SetupError { step, errno }) => {
            (errno.into(), format!("{description}: {step}: {errno}"))
        }
    };
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::ENOSPC) => {
            ConnectError::resource_exhausted(message)
        }
        // Whoever should have forked it ended.
        _ if error.kind() == io::ErrorKind::UnexpectedEof => ConnectError::unavailable(message),
        _ => ConnectError::invalid_argument(message),
    }
}

/// A size in cells. Nobody's terminal is larger than the kernel's type.
pub fn window_size(cols: u32, rows: u32) -> Winsize {
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Winsize { ws_col: cells(cols), ws_row: cells(rows), ws_xpixel: 0, ws_ypixel: 0 }
}

/// Nothing of envd's own environment but `PATH`; then the user's, the sandbox's and the request's
/// variables, later ones winning.
fn environment(user: &User, guest: &Guest, config: &ProcessConfig) -> Vec<(String, String)> {
    let path = env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
    let mut vars = BTreeMap::from([
        ("PATH".to_owned(), path),
        ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
    ]);
    vars.extend(guest.env_vars());
    vars.extend(config.envs.iter().map(|(name, value)| (name.clone(), value.clone())));
    vars.into_iter().collect()
}

/// Nothing to change when envd itself is the user already, and could not change it.
fn credentials(user: &User) -> Option<Credentials> {
    let own = geteuid();
    if !own.is_root() && own.as_raw() == user.uid {
        return None;
    }
    Some(Credentials { uid: user.uid, gid: user.gid, groups: user.groups.clone() })
}

/// Both ends of a process's standard streams.
struct Streams {
    stdio: Stdio,
    input: Input,
    outputs: Vec<(Stream, Arc<Watched>)>,
}

impl Streams {
    fn pipes(stdin: bool) -> io::Result<Self> {
        let (child_stdin, stdin) = if stdin {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            (theirs, Some(watch(ours)?))
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            (rustix::fs::open("/dev/null", flags, Mode::empty())?, None)
        };
        let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self {
            stdio: Stdio::Pipes([child_stdin, child_stdout, child_stderr]),
            input: Input::Pipe(Mutex::new(stdin)),
            outputs: vec![
                (Stream::Stdout, Arc::new(watch(stdout)?)),
                (Stream::Stderr, Arc::new(watch(stderr)?)),
            ],
        })
    }

    fn terminal(size: Winsize, user: &User) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags)?;
        unlockpt(&controller)?;
        // By descriptor, not by name: /dev/pts may show another instance.
        let user_side = ioctl_tiocgptpeer(&controller, flags)?;
        tcsetwinsize(&controller, size)?;
        own_terminal(&user_side, user);
        let controller = Arc::new(watch(controller)?);
        Ok(Self {
            stdio: Stdio::Terminal(user_side),
            input: Input::Terminal(Arc::clone(&controller), Mutex::new(())),
            outputs: vec![(Stream::Terminal, controller)],
        })
    }
}

/// Lets the user reopen the terminal by name. Best effort: most programs never do.
fn own_terminal(terminal: &impl AsFd, user: &User) {
    let owner = rustix::fs::Uid::from_raw(user.uid);
    let _ = rustix::fs::fchown(terminal, Some(owner), None);
}
