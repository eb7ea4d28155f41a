//! The spawner: a process of one thread that forks commands for envd.
//!
//! A process is born in the control group of the one that forks it. The node gives envd a group of
//! its own, so that users who take all memory, or all process numbers, take them from each other;
//! the spawner, forked before that, stays behind in theirs. It is also small, so that forking it is
//! cheap. Its children are envd's (`CLONE_PARENT`): it is envd that reaps them.
//!
//! envd sends a length and the descriptors over a pair of sockets, then the [`Command`] as JSON; the
//! answer is the process id, or an error's number below zero. One is under way at a time.
//!
//! The spawner has none of envd's secrets: it is forked before envd reads any, and keeps nothing
//! open but its socket. Root in the sandbox can still kill it. Commands are then forked by envd
//! itself, as are those that belong to the sandbox rather than to its users.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    pin::pin,
    process::exit,
    ptr,
    time::Duration,
};

use rustix::{
    cmsg_space,
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, setpgid},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
    sync::{Mutex, oneshot},
    time::timeout,
};

use super::spawn::{self, Command, Descriptors, Stdio};
use crate::reaper::{Child, Exit, Reaper};

/// The report, and the three of a process without a terminal.
const MAX_DESCRIPTORS: usize = 4;

/// A spawner that does not answer is woken each time this long has passed, and given up after so many
/// times, of which each answer that needs none makes up for one: whoever is root in the sandbox may
/// stop it again and again, and delays all commands together by no more than that.
const WAKE_PAUSE: Duration = Duration::from_millis(20);
const MOST_WAKES: usize = 750;

/// A length, or a process id.
type Word = [u8; 4];

/// A spawner that runs, before there is an event loop.
pub struct Forked {
    socket: StdStream,
    process: OwnedFd,
}

/// Forks the spawner. To be called while this process has one thread and no secret.
///
/// # Errors
/// Those of the kernel.
#[allow(unsafe_code)]
pub fn fork() -> io::Result<Forked> {
    let (socket, theirs) = StdStream::pair()?;
    socket.set_nonblocking(true)?;
    // SAFETY: this process has one thread, so the child can do whatever its parent could.
    match unsafe { libc::fork() } {
        0 => {
            drop(socket);
            run(theirs)
        }
        pid if pid > 0 => {
            let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
            // It cannot have been reaped: nobody has waited yet.
            let process = pidfd_open(pid, PidfdFlags::empty())?;
            Ok(Forked { socket, process })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// envd's side.
pub struct Spawner {
    process: OwnedFd,
    /// None once it has been lost.
    connection: Mutex<Option<Connection>>,
}

struct Connection {
    socket: UnixStream,
    /// How often it was woken, less what it made up for.
    wakes: usize,
}

/// Why there was no answer.
enum Lost {
    /// It has not seen the request, or not all of it.
    Before,
    /// It may have forked.
    Within(io::Error),
}

impl Spawner {
    /// Puts the socket into the event loop.
    ///
    /// # Errors
    /// Outside of an event loop.
    pub fn new(forked: Forked) -> io::Result<Self> {
        let socket = UnixStream::from_std(forked.socket)?;
        let connection = Connection { socket, wakes: 0 };
        Ok(Self { process: forked.process, connection: Mutex::new(Some(connection)) })
    }

    /// As [`spawn::spawn`], in the users' control group as long as there is a spawner.
    ///
    /// A spawner that gets no memory or processor answers late, and envd goes on meanwhile; one that
    /// does not answer at all is ended. Not to be dropped before its end: the answer would be taken
    /// for another's.
    ///
    /// # Errors
    /// As for [`spawn::spawn`]; and when the spawner is killed in the middle of it.
    pub async fn spawn(
        &self,
        reaper: &Reaper,
        command: &Command,
        descriptors: &Descriptors,
    ) -> io::Result<(Child, oneshot::Receiver<Exit>)> {
        command.check()?;
        let mut connection = self.connection.lock().await;
        if let Some(Connection { socket, wakes }) = connection.as_mut() {
            match self.insist(ask(socket, command, descriptors), wakes).await {
                Ok(answer) => return Ok(reaper.adopt(pid_of(answer)?)),
                Err(lost) => {
                    *connection = None;
                    if let Lost::Within(error) = lost {
                        return Err(error);
                    }
                }
            }
        }
        reaper.spawn(|| spawn::spawn(command, descriptors))
    }

    /// Waits for an answer, and wakes a spawner that somebody has stopped.
    async fn insist(
        &self,
        answer: impl Future<Output = Result<i32, Lost>>,
        wakes: &mut usize,
    ) -> Result<i32, Lost> {
        let mut answer = pin!(answer);
        *wakes = wakes.saturating_sub(1);
        while *wakes < MOST_WAKES {
            // That it has ended is found out by asking.
            let _ = pidfd_send_signal(&self.process, Signal::CONT);
            if let Ok(answer) = timeout(WAKE_PAUSE, &mut answer).await {
                return answer;
            }
            *wakes += 1;
        }
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        // A child that was stopped before its exec still has the other end of the socket.
        let answer = timeout(WAKE_PAUSE, answer).await;
        answer.unwrap_or_else(|_| Err(Lost::Within(io::ErrorKind::UnexpectedEof.into())))
    }
}

/// Has the spawner fork, and returns its answer.
async fn ask(
    socket: &mut UnixStream,
    command: &Command,
    descriptors: &Descriptors,
) -> Result<i32, Lost> {
    let request = serde_json::to_vec(command).map_err(|error| Lost::Within(error.into()))?;
    let length = u32::try_from(request.len()).map_err(|_| Lost::Within(Errno::TOOBIG.into()))?;
    let passed = descriptors.to_pass();
    let header = async {
        let send = || send_header(socket, length, &passed);
        socket.async_io(Interest::WRITABLE, send).await
    };
    // It reads nothing but whole requests: an error here means that it is gone.
    header.await.map_err(|_| Lost::Before)?;
    socket.write_all(&request).await.map_err(|_| Lost::Before)?;
    let mut answer = Word::default();
    match socket.read_exact(&mut answer).await {
        Ok(_) => Ok(i32::from_ne_bytes(answer)),
        // The kernel's word for an end with something still unread.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(Lost::Before),
        Err(error) => Err(Lost::Within(error)),
    }
}

fn send_header(socket: &impl AsFd, length: u32, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL.into());
    }
    let length = length.to_ne_bytes();
    // So few bytes are sent whole or not at all.
    sendmsg(socket, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn pid_of(answer: i32) -> io::Result<Pid> {
    match answer {
        1.. => Pid::from_raw(answer).ok_or_else(|| Errno::SRCH.into()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

impl Descriptors {
    fn to_pass(&self) -> Vec<BorrowedFd<'_>> {
        let stdio = match &self.stdio {
            Stdio::Pipes(pipes) => pipes.as_slice(),
            Stdio::Terminal(user_side) => std::slice::from_ref(user_side),
        };
        [&self.report].into_iter().chain(stdio).map(AsFd::as_fd).collect()
    }

    fn from_passed(passed: Vec<OwnedFd>) -> Option<Self> {
        let mut passed = passed.into_iter();
        let (report, first) = (passed.next()?, passed.next()?);
        let stdio = match (passed.next(), passed.next()) {
            (Some(second), Some(third)) => Stdio::Pipes([first, second, third]),
            _ => Stdio::Terminal(first),
        };
        Some(Self { report, stdio })
    }
}

/// The spawner, from fork to the end of envd.
fn run(socket: StdStream) -> ! {
    let group = spawn::own_group();
    let prepared = prepare(&socket, group);
    while prepared.is_ok() {
        let Ok(Some((command, descriptors))) = receive(&socket) else { break };
        let answer = match spawn::spawn_sibling(&command, &descriptors, group) {
            Ok(pid) => pid.as_raw_nonzero().get(),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EINVAL),
        };
        // First: nobody wakes it any more once it has answered, and whoever reads from the child
        // would wait for the ends that it still holds.
        drop(descriptors);
        if (&socket).write_all(&answer.to_ne_bytes()).is_err() {
            break;
        }
    }
    exit(0)
}

/// Takes it out of the reach of passing signals, and from it the descriptors that are envd's.
#[allow(unsafe_code)]
fn prepare(socket: &StdStream, group: libc::pid_t) -> io::Result<()> {
    const FIRST: u32 = 3;
    // A signal to envd's group, which is everybody's, is not for it.
    if group > 0 {
        setpgid(None, None)?;
    }
    // Not merely closed: descriptors that are passed must not get the numbers of a child's streams.
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    // Closed with the others.
    let _ = null.into_raw_fd();
    let number = socket.as_raw_fd().unsigned_abs();
    let close = |from: u32, to: u32| {
        if from > to {
            return Ok(());
        }
        // SAFETY: nothing in this process uses a descriptor but the socket, which is left out; the
        // owners of the others are never dropped.
        match unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    close(FIRST, number.saturating_sub(1))?;
    close(number + 1, u32::MAX)?;
    // SAFETY: the set is a local. Children begin with an empty mask.
    let blocked = unsafe {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut())
    };
    if blocked != 0 {
        return Err(io::Error::last_os_error());
    }
    // For people who look at processes; at last, when it is what the name says.
    rustix::thread::set_name(c"envd-spawner")?;
    Ok(())
}

/// The next request; none when envd has gone.
fn receive(mut socket: &StdStream) -> io::Result<Option<(Command, Descriptors)>> {
    let mut length = Word::default();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        let into = &mut [IoSliceMut::new(&mut length)];
        recvmsg(socket, into, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes != length.len() {
        return Ok(None);
    }
    let mut passed = Vec::with_capacity(MAX_DESCRIPTORS);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed.extend(descriptors);
        }
    }
    let mut request = vec![0; u32::from_ne_bytes(length) as usize];
    socket.read_exact(&mut request)?;
    let command = serde_json::from_slice(&request)?;
    Ok(Descriptors::from_passed(passed).map(|descriptors| (command, descriptors)))
}
