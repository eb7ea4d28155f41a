//! The data directory: one running Atoll each, an identity, and small secrets.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use atoll_core::{Error, InstanceId, Result, error::codes};

/// A data directory that this process alone uses, for as long as it lives.
pub(crate) struct DataDir {
    path: PathBuf,
    instance: InstanceId,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if it is new, and locks it.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE`, `DATA_DIR_IN_USE` or `DISK_FULL`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(path).map_err(|e| unusable(path, &e))?;
        let path = path.canonicalize().map_err(|e| unusable(path, &e))?;
        require_private(&path)?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&lock_path)
            .map_err(|e| unusable(&lock_path, &e))?;
        take_lock(&mut lock, &path)?;
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(|e| unusable(&lock_path, &e))?;
        let instance = load_instance(&path)?;
        Ok(Self { path, instance, _lock: lock })
    }

    /// Whether an Atoll runs on this directory.
    pub(crate) fn is_in_use(path: &Path) -> bool {
        let lock = File::open(path.join("lock"));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// A path in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The identity that its objects on the host carry.
    pub(crate) fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// A secret that is made at first use and stays.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` or `DISK_FULL`.
    pub(crate) fn secret(&self, name: &str) -> Result<String> {
        let path = self.join(name);
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().len() >= 32 => return Ok(text.trim().to_owned()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unusable(&path, &error)),
        }
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::new(codes::INTERNAL, format!("no randomness: {error}.")))?;
        let secret = hex::encode(bytes);
        self.write(name, &secret, 0o600)?;
        Ok(secret)
    }

    /// Writes a file of it in one step: it is the old one or the new one, never half.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` or `DISK_FULL`.
    pub(crate) fn write(&self, name: &str, content: &str, mode: u32) -> Result<()> {
        write_atomically(&self.join(name), content, mode)
    }
}

/// Programs in this directory are run as root: nobody else may write to it.
fn require_private(path: &Path) -> Result<()> {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    let metadata = fs::metadata(path).map_err(|e| unusable(path, &e))?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if ours && metadata.mode() & OTHERS_MAY_WRITE == 0 {
        return Ok(());
    }
    Err(Error::new(
        codes::DATA_DIR_UNUSABLE,
        format!("others can write to the data directory {}.", path.display()),
    )
    .with_fix(format!(
        "Make it root's alone: chown root {0} && chmod go-w {0}; or use another one.",
        path.display()
    )))
}

fn write_atomically(path: &Path, content: &str, mode: u32) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> io::Result<()> {
        // Made anew, so that an earlier file's mode does not stay.
        if let Err(error) = fs::remove_file(&partial)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&partial)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|error| unusable(path, &error))
}

fn load_instance(directory: &Path) -> Result<InstanceId> {
    let path = directory.join("instance");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|error| {
            Error::new(codes::DATA_DIR_UNUSABLE, format!("{} is damaged: {error}.", path.display()))
                .with_fix("Put back the six characters it had, or start with a new directory.")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let instance = InstanceId::generate()
                .map_err(|error| Error::new(codes::INTERNAL, format!("no randomness: {error}.")))?;
            write_atomically(&path, instance.as_str(), 0o644)?;
            Ok(instance)
        }
        Err(error) => Err(unusable(&path, &error)),
    }
}

/// A process that an Atoll was forking when it was killed has its lock until it executes: this long
/// is waited for that.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

fn take_lock(lock: &mut File, path: &Path) -> Result<()> {
    let started = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(unusable(&path.join("lock"), &error)),
            Err(TryLockError::WouldBlock) => {}
        }
        let holder = holder(lock);
        let is_gone = holder.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if !is_gone || started.elapsed() > LOCK_PATIENCE {
            return Err(in_use(path, holder));
        }
        thread::sleep(LOCK_PAUSE);
    }
}

/// The process that wrote itself into the lock.
fn holder(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.rewind().and_then(|()| lock.read_to_string(&mut text)).ok()?;
    text.trim().parse().ok()
}

fn in_use(path: &Path, holder: Option<u32>) -> Error {
    let who = holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    Error::new(
        codes::DATA_DIR_IN_USE,
        format!("another Atoll{who} runs on the data directory {}.", path.display()),
    )
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => codes::DISK_FULL,
        _ => codes::DATA_DIR_UNUSABLE,
    };
    Error::new(code, format!("cannot use {}: {error}.", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_user_and_one_identity() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let instance = first.instance().clone();
        let second = DataDir::open(&path).err().unwrap();
        assert_eq!(second.code, codes::DATA_DIR_IN_USE);
        assert!(second.message.contains(&std::process::id().to_string()), "{second}");
        drop(first);
        assert_eq!(*DataDir::open(&path).unwrap().instance(), instance);
    }

    #[test]
    fn a_secret_stays_and_is_private() {
        use std::os::unix::fs::PermissionsExt;

        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path()).unwrap();
        let secret = directory.secret("seed").unwrap();
        assert_eq!(secret.len(), 64);
        assert_eq!(directory.secret("seed").unwrap(), secret);
        let mode = fs::metadata(directory.join("seed")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let temporary = tempfile::tempdir().unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = DataDir::open(temporary.path()).err().unwrap();
        assert_eq!(error.code, codes::DATA_DIR_UNUSABLE);
        assert!(error.fix.contains("chmod go-w"), "{error}");
    }

    #[test]
    fn a_file_in_the_way_is_said() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("file");
        fs::write(&path, "").unwrap();
        let error = DataDir::open(&path).err().unwrap();
        assert_eq!(error.code, codes::DATA_DIR_UNUSABLE);
    }

    #[test]
    fn a_damaged_identity_is_not_replaced() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("instance"), "../..").unwrap();
        assert_eq!(DataDir::open(temporary.path()).err().unwrap().code, codes::DATA_DIR_UNUSABLE);
    }
}
