//! One watched directory: an inotify instance, and what its events mean to a client.
//!
//! Names in events are relative to the watched directory, `.` for itself. A recursive watch keeps
//! a watch on every directory below. One that appears is walked after its watch is set, so that
//! what was put into it in the meantime is reported, too; what is then reported by the kernel
//! again is left out.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_wire::rpc::filesystem::{EventType, FilesystemEvent};
use buffa::MessageField;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::entry;
use crate::users::Names;

/// Events taken in one go; whoever drains may then do something else for a moment.
const BATCH: usize = 4096;

/// Room for the events of one read. One with the longest name takes 272 bytes.
const READ_BUFFER: usize = 16 << 10;

/// Why a watch cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Events came faster than they were taken: some are lost.
    #[error("event queue overflow")]
    Overflow,
    /// The system gives no more inotify instances or watches.
    #[error("too many watches: {0}")]
    Limit(io::Error),
    /// Anything else.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for WatchError {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::NOSPC | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Self::Limit(error),
            _ => Self::Io(error),
        }
    }
}

impl From<Errno> for WatchError {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// Whether a drain took all there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing is left.
    Empty,
    /// There may be more.
    More,
}

/// What a client wants to see.
#[derive(Clone, Copy, Debug, Default)]
pub struct WatchOptions {
    /// Directories below, too.
    pub recursive: bool,
    /// The entry with each event that leaves one.
    pub include_entry: bool,
}

/// A watch in progress. Dropping it ends it.
pub struct Watch {
    inotify: Arc<OwnedFd>,
    root: PathBuf,
    options: WatchOptions,
    /// Watched directories, relative to the root, by watch descriptor. The root is the empty path.
    dirs: HashMap<i32, PathBuf>,
    /// What walks have reported and the kernel may report again.
    walked: HashSet<(i32, OsString)>,
    /// A directory that has left its place, and the cookie that its arrival would carry.
    moved: Option<(u32, PathBuf)>,
}

/// An event as the kernel gives it.
struct Raw {
    wd: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<OsString>,
}

impl Watch {
    /// Starts to watch a directory, blocking. Events from now on are kept by the kernel.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn start(root: PathBuf, options: WatchOptions) -> Result<Self, WatchError> {
        let inotify = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        let wd = inotify::add_watch(&inotify, &root, interest() | WatchFlags::ONLYDIR)?;
        let mut watch = Self {
            inotify,
            root,
            options,
            dirs: HashMap::from([(wd, PathBuf::new())]),
            walked: HashSet::new(),
            moved: None,
        };
        if options.recursive {
            // The root's own watch stays: a directory has one in an inotify instance.
            watch.adopt(Path::new(""), None)?;
        }
        Ok(watch)
    }

    /// What becomes readable when there are events.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    #[allow(unsafe_code)]
    pub fn readiness(&self) -> Result<AsyncFd<Arc<OwnedFd>>, WatchError> {
        let inotify = Arc::clone(&self.inotify);
        // SAFETY: the descriptor stays open, and the same, as long as the `Arc` that is handed
        // over, which nobody can take out of the registration without ending it.
        let registered = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
        registered.map_err(|error| io::Error::from(error).into())
    }

    /// Appends the events that have happened so far, or a batch of them, to `events`. Blocking,
    /// though it does not wait.
    ///
    /// # Errors
    /// [`WatchError`]; the watch is of no more use then.
    pub fn drain(&mut self, events: &mut Vec<FilesystemEvent>) -> Result<Drained, WatchError> {
        let inotify = Arc::clone(&self.inotify);
        let mut buffer = [MaybeUninit::uninit(); READ_BUFFER];
        let mut reader = Reader::new(&inotify, &mut buffer);
        let root = self.root.clone();
        let mut reports = Reports { root: &root, options: self.options, names: None, events };
        let mut taken = 0;
        let drained = loop {
            // A batch ends with the buffer, since what is in there would be lost.
            if taken >= BATCH && reader.is_buffer_empty() {
                break Drained::More;
            }
            let raw = match reader.next() {
                Ok(event) => Raw {
                    wd: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).into()),
                },
                Err(Errno::AGAIN) => break Drained::Empty,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.handle(raw, &mut reports)?;
            taken += 1;
        };
        if drained == Drained::Empty {
            // What raced with a walk has been seen by now.
            self.walked.clear();
            self.settle_move(None);
        }
        Ok(drained)
    }

    fn handle(&mut self, raw: Raw, reports: &mut Reports<'_>) -> Result<(), WatchError> {
        if raw.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Err(WatchError::Overflow);
        }
        let arrival = self.settle_move(Some(&raw));
        if raw.flags.contains(ReadFlags::IGNORED) {
            self.dirs.remove(&raw.wd);
            return Ok(());
        }
        let Some(dir) = self.dirs.get(&raw.wd) else { return Ok(()) };
        let Some(name) = raw.name else {
            // Of a directory below, its parent's watch tells the same.
            if dir.as_os_str().is_empty() {
                reports.add_all(raw.flags, Path::new("."));
            }
            return Ok(());
        };
        let path = dir.join(&name);
        let key = (raw.wd, name);
        if raw.flags.contains(ReadFlags::CREATE) && self.walked.contains(&key) {
            return Ok(());
        }
        if raw.flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            self.walked.remove(&key);
        }
        reports.add_all(raw.flags, &path);
        if self.options.recursive && raw.flags.contains(ReadFlags::ISDIR) {
            if raw.flags.contains(ReadFlags::CREATE) {
                self.adopt(&path, Some(reports))?;
            } else if raw.flags.contains(ReadFlags::MOVED_FROM) {
                self.moved = Some((raw.cookie, path));
            } else if raw.flags.contains(ReadFlags::MOVED_TO) && !arrival {
                self.adopt(&path, None)?;
            }
        }
        Ok(())
    }

    /// Ends a pending move of a directory. If `next` is its arrival, the watches below go along,
    /// and the answer is true; else it has left the tree, and its watches go.
    fn settle_move(&mut self, next: Option<&Raw>) -> bool {
        let Some((cookie, old)) = self.moved.take() else { return false };
        let new = next
            .filter(|raw| raw.cookie == cookie && raw.flags.contains(ReadFlags::MOVED_TO))
            .and_then(|raw| Some(self.dirs.get(&raw.wd)?.join(raw.name.as_ref()?)));
        let arrived = new.is_some();
        let below = self.dirs.extract_if(|_, dir| dir.starts_with(&old)).collect::<Vec<_>>();
        for (wd, dir) in below {
            match (&new, dir.strip_prefix(&old)) {
                (Some(new), Ok(rest)) => {
                    let dir =
                        if rest.as_os_str().is_empty() { new.clone() } else { new.join(rest) };
                    self.dirs.insert(wd, dir);
                }
                // A watch whose directory is gone has ended by itself.
                _ => drop(inotify::remove_watch(&self.inotify, wd)),
            }
        }
        arrived
    }

    /// Watches a directory and everything below it, and reports what is in there, if there is
    /// somebody to report to.
    fn adopt(
        &mut self,
        dir: &Path,
        mut reports: Option<&mut Reports<'_>>,
    ) -> Result<(), WatchError> {
        let flags = interest() | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        let mut pending = vec![dir.to_owned()];
        while let Some(dir) = pending.pop() {
            let wd = match inotify::add_watch(&self.inotify, self.root.join(&dir), flags) {
                Ok(wd) => wd,
                // Gone already, or something else by now.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(error.into()),
            };
            self.dirs.insert(wd, dir.clone());
            let Ok(entries) = fs::read_dir(self.root.join(&dir)) else { continue };
            for entry in entries.map_while(Result::ok) {
                let path = dir.join(entry.file_name());
                if let Some(reports) = &mut reports {
                    reports.add_found(&entry, &path);
                    self.walked.insert((wd, entry.file_name()));
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(path);
                }
            }
        }
        Ok(())
    }
}

/// What a watch asks the kernel for. Opening and closing is nobody's business.
fn interest() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVE_SELF
        | WatchFlags::ATTRIB
}

/// Where the events of a drain go.
struct Reports<'a> {
    root: &'a Path,
    options: WatchOptions,
    /// Loaded when the first entry is described.
    names: Option<Names>,
    events: &'a mut Vec<FilesystemEvent>,
}

impl Reports<'_> {
    /// Reports all that a kernel event says.
    fn add_all(&mut self, flags: ReadFlags, path: &Path) {
        let meanings = [
            (ReadFlags::CREATE | ReadFlags::MOVED_TO, EventType::EVENT_TYPE_CREATE),
            (ReadFlags::MODIFY, EventType::EVENT_TYPE_WRITE),
            (ReadFlags::DELETE | ReadFlags::DELETE_SELF, EventType::EVENT_TYPE_REMOVE),
            (ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF, EventType::EVENT_TYPE_RENAME),
            (ReadFlags::ATTRIB, EventType::EVENT_TYPE_CHMOD),
        ];
        for (flag, kind) in meanings {
            if flags.intersects(flag) {
                self.add(kind, path);
            }
        }
    }

    /// Reports what a walk has found: it was created and, if there is something in it, written.
    fn add_found(&mut self, found: &DirEntry, path: &Path) {
        self.add(EventType::EVENT_TYPE_CREATE, path);
        if found.metadata().is_ok_and(|found| found.is_file() && found.len() > 0) {
            self.add(EventType::EVENT_TYPE_WRITE, path);
        }
    }

    fn add(&mut self, kind: EventType, path: &Path) {
        let leaves_entry =
            !matches!(kind, EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME);
        let entry = if self.options.include_entry && leaves_entry {
            let names = self.names.get_or_insert_with(Names::load);
            let path =
                if path == Path::new(".") { self.root.to_owned() } else { self.root.join(path) };
            entry::read(&path, names).ok()
        } else {
            None
        };
        self.events.push(FilesystemEvent {
            name: path.to_string_lossy().into_owned(),
            r#type: kind.into(),
            entry: MessageField::from(entry),
            ..FilesystemEvent::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        watch: Watch,
    }

    impl Fixture {
        /// Watches a directory that has a subdirectory `sub`.
        fn new(recursive: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("sub")).unwrap();
            let options = WatchOptions { recursive, include_entry: false };
            let watch = Watch::start(dir.path().to_owned(), options).unwrap();
            Self { dir, watch }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn events(&mut self) -> Vec<String> {
            let mut events = Vec::new();
            while self.watch.drain(&mut events).unwrap() == Drained::More {}
            events
                .into_iter()
                .map(|event| {
                    let kind = format!("{:?}", event.r#type.as_known().unwrap());
                    format!("{} {}", kind.trim_start_matches("EVENT_TYPE_"), event.name)
                })
                .collect()
        }
    }

    // Rules: WATCH-6, WATCH-7, WATCH-9
    #[test]
    fn a_flat_watch_sees_its_own_directory_alone() {
        let mut fixture = Fixture::new(false);
        fs::write(fixture.path("file"), "x").unwrap();
        fs::write(fixture.path("sub/file"), "x").unwrap();
        fs::rename(fixture.path("file"), fixture.path("other")).unwrap();
        fs::remove_file(fixture.path("other")).unwrap();
        assert_eq!(
            fixture.events(),
            ["CREATE file", "WRITE file", "RENAME file", "CREATE other", "REMOVE other"]
        );
        assert_eq!(fixture.events(), [""; 0]);
    }

    // Rules: WATCH-8, WATCH-10
    #[test]
    fn a_recursive_watch_sees_directories_below() {
        let mut fixture = Fixture::new(true);
        fs::write(fixture.path("sub/file"), "x").unwrap();
        assert_eq!(fixture.events(), ["CREATE sub/file", "WRITE sub/file"]);
        fs::create_dir(fixture.path("sub/new")).unwrap();
        assert_eq!(fixture.events(), ["CREATE sub/new"]);
        fs::write(fixture.path("sub/new/file"), "x").unwrap();
        assert_eq!(fixture.events(), ["CREATE sub/new/file", "WRITE sub/new/file"]);
        fs::remove_dir_all(fixture.path("sub/new")).unwrap();
        assert_eq!(fixture.events(), ["REMOVE sub/new/file", "REMOVE sub/new"]);
    }

    // Rules: WATCH-10
    #[test]
    fn what_came_with_a_new_directory_is_reported_once() {
        let mut fixture = Fixture::new(true);
        fs::create_dir_all(fixture.path("new/deep")).unwrap();
        fs::write(fixture.path("new/deep/file"), "x").unwrap();
        fs::write(fixture.path("new/empty"), "").unwrap();
        let mut events = fixture.events();
        assert_eq!(events.remove(0), "CREATE new");
        events.sort();
        assert_eq!(
            events,
            ["CREATE new/deep", "CREATE new/deep/file", "CREATE new/empty", "WRITE new/deep/file"]
        );
        fs::remove_file(fixture.path("new/empty")).unwrap();
        fs::write(fixture.path("new/empty"), "").unwrap();
        assert_eq!(fixture.events(), ["REMOVE new/empty", "CREATE new/empty"]);
    }

    // Rules: WATCH-9, WATCH-10, TRAP-37
    #[test]
    fn a_directory_that_moves_takes_its_watches_along() {
        let mut fixture = Fixture::new(true);
        fs::create_dir(fixture.path("sub/deep")).unwrap();
        fixture.events();
        fs::rename(fixture.path("sub"), fixture.path("moved")).unwrap();
        fs::write(fixture.path("moved/deep/file"), "x").unwrap();
        assert_eq!(
            fixture.events(),
            ["RENAME sub", "CREATE moved", "CREATE moved/deep/file", "WRITE moved/deep/file"]
        );
    }

    // Rules: WATCH-10
    #[test]
    fn a_directory_that_leaves_is_watched_no_more() {
        let mut fixture = Fixture::new(true);
        let elsewhere = tempfile::tempdir().unwrap();
        let away = elsewhere.path().join("away");
        fs::rename(fixture.path("sub"), &away).unwrap();
        assert_eq!(fixture.events(), ["RENAME sub"]);
        fs::write(away.join("file"), "x").unwrap();
        assert_eq!(fixture.events(), [""; 0]);

        fs::rename(&away, fixture.path("back")).unwrap();
        assert_eq!(fixture.events(), ["CREATE back"]);
        fs::write(fixture.path("back/file"), "").unwrap();
        assert_eq!(fixture.events(), ["WRITE back/file"]);
    }

    // Rules: WATCH-8, WATCH-18
    #[test]
    fn the_directory_itself_is_a_dot() {
        use std::os::unix::fs::PermissionsExt;

        let mut fixture = Fixture::new(true);
        fs::set_permissions(fixture.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(fixture.path("sub"), fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(fixture.events(), ["CHMOD .", "CHMOD sub"]);
        fs::remove_dir_all(fixture.dir.path()).unwrap();
        assert_eq!(fixture.events(), ["REMOVE sub", "REMOVE ."]);
    }

    // Rules: WATCH-12, TRAP-39
    #[test]
    fn lost_events_are_an_error() {
        let mut fixture = Fixture::new(false);
        let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let (one, other) = (fixture.path("one"), fixture.path("other"));
        fs::write(&one, "").unwrap();
        // Two events each.
        for _ in 0..=limit / 4 {
            fs::rename(&one, &other).unwrap();
            fs::rename(&other, &one).unwrap();
        }
        let mut events = Vec::new();
        let error = loop {
            match fixture.watch.drain(&mut events) {
                Ok(Drained::More) => {}
                Ok(Drained::Empty) => panic!("{} events and no overflow", events.len()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, WatchError::Overflow), "{error}");
    }
}
