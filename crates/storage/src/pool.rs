//! The pool: a btrfs file system in a sparse image file, with quotas on.
//!
//! The host's file system seldom has quotas that a program may use, so the disks live in a file
//! system of their own, on every host alike. Programs (`mkfs.btrfs`, `mount`, `umount`, `losetup`)
//! run at start and end only.
//!
//! It is copy-on-write with checksums of data and metadata (the defaults of btrfs; no option turns
//! them off): a block that is not what was written is an I/O error for whoever reads it. A sandbox may
//! turn them off for files of its own, as on any btrfs.
//!
//! The mount outlives this process: sandboxes run on it. A later start finds it and goes on.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};

use crate::{
    btrfs,
    file::{failed, private_dir, set_private, unusable},
    mount,
};

/// Least size of a pool whose size Atoll chooses.
const MIN_DEFAULT_BYTES: u64 = 8 << 30;
/// Least size of a pool at all: below, btrfs has hardly room for its own structures.
const MIN_BYTES: u64 = 256 << 20;

/// Less than this, bytes, and less than one part in [`HOST_SHARE`], is nearly nothing on a file system.
const HOST_RESERVE: u64 = 1 << 30;
const HOST_SHARE: u64 = 50;

/// How long it is tried to unmount the pool: a child of this process has what is open here until it has
/// become another program.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// A btrfs superblock begins at 64 KiB with a checksum, ids and flags, 64 bytes in all; then this.
const MAGIC: &[u8; 8] = b"_BHRfS_M";
const MAGIC_OFFSET: u64 = 0x10040;

/// - `nodev`, `nosuid`: what a sandbox writes is no use to a process of the host. Overlay mounts on
///   top have flags of their own, so set-user-id programs work inside.
/// - `commit`: the kernel frees the space of deleted disks at this interval, seconds.
/// - `discard`: freed space goes back to the host's file system.
const MOUNT_OPTIONS: &str = "loop,nodev,nosuid,noatime,discard=async,commit=5";

/// Root may have been entered without a login, with a path that lacks the administrator's programs.
const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A mounted pool.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    /// Where it is mounted.
    pub(crate) dir: PathBuf,
    /// Its directory under `/sys/fs/btrfs`.
    pub(crate) sysfs: PathBuf,
    /// Its quotas are simple ones: see [`btrfs::enable_quotas`].
    pub(crate) simple_quotas: bool,
}

impl Pool {
    /// Mounts the pool of `data_dir`, which it makes if need be, or takes over a mount that is there.
    pub(crate) fn open(data_dir: &Path, bytes: Option<u64>) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::new(codes::PRIVILEGE_MISSING, "only root can mount the disk pool."));
        }
        let image = data_dir.join("pool.img");
        let dir = data_dir.join("pool");
        // What may be mounted there may be read-only.
        if !fs::exists(&dir).map_err(|error| unusable("look for", &dir, &error))? {
            private_dir(&dir)?;
        }
        if !take_over(&image, &dir)? {
            if !fs::exists(&image).map_err(|error| unusable("look for", &image, &error))? {
                make_image(&image, image_size(data_dir, bytes)?)?;
            }
            check_image(&image)?;
            mount_image(&image, &dir)?;
        }
        set_private(&dir)?;
        let root = File::open(&dir).map_err(|error| unusable("open", &dir, &error))?;
        let pool_failed = |what: &str, error: &io::Error| failed(codes::POOL_FAILED, what, error);
        btrfs::enable_quotas(&root).map_err(|error| {
            pool_failed("turn on the quotas of the pool", &error)
                .with_fix("Use a kernel that has btrfs quotas; every distribution's has.")
        })?;
        let id = btrfs::file_system_id(&root)
            .map_err(|error| pool_failed("read the id of the pool's file system", &error))?;
        let sysfs = Path::new("/sys/fs/btrfs").join(id.to_string());
        Ok(Self { dir, simple_quotas: btrfs::has_simple_quotas(&sysfs), sysfs })
    }

    /// Bytes used and total.
    pub(crate) fn usage(&self) -> Result<(u64, u64)> {
        let (free, _, total) =
            space(&self.dir).map_err(|error| unusable("measure", &self.dir, &error))?;
        Ok((total.saturating_sub(free), total))
    }

    /// Bytes that can still be written, and total.
    pub(crate) fn free(&self) -> Result<(u64, u64)> {
        let (_, free, total) =
            space(&self.dir).map_err(|error| unusable("measure", &self.dir, &error))?;
        Ok((free, total))
    }

    /// Whether what a sandbox may write has a place on the host. The image is sparse: were the file
    /// system below it full, the kernel would make the pool read-only for all.
    ///
    /// # Errors
    /// `DISK_FULL` when less than 2 % of that, and less than 1 GiB, is left.
    pub(crate) fn check_host(&self) -> Result<()> {
        let data_dir = self.dir.parent().unwrap_or(&self.dir);
        let (_, free, total) =
            space(data_dir).map_err(|error| unusable("measure", data_dir, &error))?;
        if free >= HOST_RESERVE.min(total / HOST_SHARE) {
            return Ok(());
        }
        let message = format!(
            "the file system of {} has only {} MiB left, and the disk pool is to grow there.",
            data_dir.display(),
            free >> 20
        );
        Err(Error::new(codes::DISK_FULL, message).with_fix("Free space there."))
    }

    /// Unmounts it, unless something in it is in use: then it stays for the next start.
    pub(crate) fn close(&self) {
        let deadline = Instant::now() + CLOSE_PATIENCE;
        while let Err(error) = run("umount", "mount", Command::new("umount").arg(&self.dir)) {
            if Instant::now() > deadline {
                tracing::warn!(%error, "the disk pool stays mounted");
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Bytes free for root, free for others, total.
fn space(path: &Path) -> io::Result<(u64, u64, u64)> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_bfree * stat.f_frsize, stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

/// Whether the pool of a previous run is mounted and can be used. One that the kernel has turned
/// read-only after an error is unmounted.
fn take_over(image: &Path, dir: &Path) -> Result<bool> {
    // mountinfo has real paths.
    let point = dir.canonicalize().map_err(|error| unusable("resolve", dir, &error))?;
    let found = mount::find(&point)
        .map_err(|error| failed(codes::POOL_FAILED, "read /proc/self/mountinfo", &error))?;
    let Some(found) = found else { return Ok(false) };
    let ours = image.canonicalize().ok();
    if found.kind != "btrfs" || ours.is_none() || mount::backing_file(&found.source) != ours {
        let message = format!(
            "{} is mounted on {}, where the disk pool belongs.",
            found.source.display(),
            dir.display()
        );
        return Err(Error::new(codes::POOL_FAILED, message)
            .with_fix(format!("Unmount it: `umount {}`.", dir.display())));
    }
    if !found.writable {
        tracing::warn!("the disk pool had become read-only; mounting it again");
        run("umount", "mount", Command::new("umount").arg(dir))
            .map_err(|error| held(dir, &error))?;
    }
    Ok(found.writable)
}

/// The error for a pool that is read-only for good, and that something holds, which `umount` said.
fn held(dir: &Path, said: &Error) -> Error {
    let data_dir = dir.parent().unwrap_or(dir);
    let free = space(data_dir).map_or(0, |(_, free, _)| free);
    let message = format!(
        "the kernel has made the disk pool read-only after an error, and it is in use: {} The file \
         system of {} has {} MiB free.",
        said.message,
        data_dir.display(),
        free >> 20
    );
    let instance = fs::read_to_string(data_dir.join("instance")).unwrap_or_default();
    let first = first_processes(&format!("/atoll-{}/", instance.trim()));
    let pids: Vec<String> = first.iter().map(u32::to_string).collect();
    let end = match pids.is_empty() {
        true => "`fuser --mount` with that directory shows what uses it.".to_owned(),
        false => format!("End its sandboxes, which are lost: `kill -9 {}`.", pids.join(" ")),
    };
    let fix =
        format!("If little is free there, the pool could not grow: free space. {end} Start again.");
    Error::new(codes::POOL_FAILED, message).with_fix(fix)
}

/// The first processes of the sandboxes in these control groups: process 1 in a namespace of its own.
fn first_processes(group: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut first: Vec<u32> = pids
        .filter(|pid| {
            let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let status = read("status");
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            // Of the host's own first process there is but one.
            let inside = ids.unwrap_or_default().split_whitespace().skip(1).last();
            inside == Some("1") && read("cgroup").contains(group)
        })
        .collect();
    first.sort_unstable();
    first
}

/// The size of a new image: as asked for, or half of what is free.
fn image_size(data_dir: &Path, asked: Option<u64>) -> Result<u64> {
    let (_, free, _) = space(data_dir).map_err(|error| unusable("measure", data_dir, &error))?;
    if let Some(bytes) = asked.filter(|bytes| *bytes < MIN_BYTES) {
        let message = format!("a disk pool of {bytes} bytes is too small; 256 MiB is the least.");
        return Err(Error::new(codes::BAD_OPTION, message));
    }
    let bytes = asked.unwrap_or(free / 2);
    if bytes > free || (asked.is_none() && bytes < MIN_DEFAULT_BYTES) {
        let message = format!(
            "{} has {} MiB free, too little for a disk pool of {} MiB.",
            data_dir.display(),
            free >> 20,
            bytes.max(if asked.is_none() { MIN_DEFAULT_BYTES } else { 0 }) >> 20,
        );
        return Err(Error::new(codes::DISK_FULL, message)
            .with_fix("Free space there, choose another --data-dir, or set a smaller pool."));
    }
    Ok(bytes >> 20 << 20)
}

/// Makes the image under another name and renames it, so that `pool.img` is never half made.
fn make_image(image: &Path, bytes: u64) -> Result<()> {
    let draft = image.with_extension("tmp");
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(|error| unusable("make", &draft, &error))?;
    file.set_len(bytes).map_err(|error| unusable("size", &draft, &error))?;
    // One copy of the metadata: the image lies on one disk in any case.
    let mut mkfs = Command::new("mkfs.btrfs");
    mkfs.args(["--quiet", "--force", "--metadata", "single", "--label", "atoll"]).arg(&draft);
    run("mkfs.btrfs", "btrfs-progs", &mut mkfs)?;
    file.sync_all().map_err(|error| unusable("write", &draft, &error))?;
    fs::rename(&draft, image).map_err(|error| unusable("make", image, &error))?;
    tracing::info!(image = %image.display(), mib = bytes >> 20, "made the disk pool");
    Ok(())
}

/// Refuses an image that is something else: `mount` would only say "wrong fs type".
fn check_image(image: &Path) -> Result<()> {
    let mut magic = [0; MAGIC.len()];
    let read = File::open(image).and_then(|file| file.read_exact_at(&mut magic, MAGIC_OFFSET));
    match read {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(unusable("read", image, &error))
        }
        Ok(()) if &magic == MAGIC => Ok(()),
        _ => {
            let message = format!("{} holds no btrfs file system.", image.display());
            Err(Error::new(codes::POOL_FAILED, message).with_fix(
                "Move the file away; Atoll then makes a new pool. Snapshots are in it, templates not.",
            ))
        }
    }
}

fn mount_image(image: &Path, dir: &Path) -> Result<()> {
    let mut mount = Command::new("mount");
    mount.args(["-t", "btrfs", "-o", MOUNT_OPTIONS]).arg(image).arg(dir);
    if let Err(error) = run("mount", "mount", &mut mount) {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !known.lines().any(|line| line.split_whitespace().any(|word| word == "btrfs")) {
            return Err(Error::new(codes::HOST_FEATURE_MISSING, "this kernel has no btrfs.")
                .with_fix("Use a kernel that has it (CONFIG_BTRFS_FS); distributions' have."));
        }
        return Err(error);
    }
    direct_io(dir);
    Ok(())
}

/// Lets the loop device bypass the host's page cache, where the file system below can do that, so
/// that a sandbox's files are not cached twice.
fn direct_io(dir: &Path) {
    let device = dir.canonicalize().ok().and_then(|point| mount::find(&point).ok().flatten());
    let Some(device) = device.map(|mount| mount.source) else { return };
    let mut losetup = Command::new("losetup");
    losetup.arg("--direct-io=on").arg(&device);
    if let Err(error) = run("losetup", "mount", &mut losetup) {
        tracing::debug!(%error, "the pool goes through the host's page cache");
    }
}

/// Runs a program to its end. `package` is where Debian has it.
fn run(name: &str, package: &str, command: &mut Command) -> Result<()> {
    let path = match std::env::var("PATH") {
        Ok(path) => format!("{path}:{TOOL_PATH}"),
        Err(_) => TOOL_PATH.to_owned(),
    };
    let output = command.env("PATH", path).env("LC_ALL", "C").stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().replace('\n', " ");
            Err(Error::new(codes::POOL_FAILED, format!("`{name}` failed: {said}")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::new(codes::TOOL_MISSING, format!("`{name}` is not installed."))
                .with_fix(format!("Install the package {package}.")))
        }
        Err(error) => Err(failed(codes::POOL_FAILED, format_args!("run `{name}`"), &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_does_not_fit_is_refused_before_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(image_size(dir.path(), Some(1)).unwrap_err().code, codes::BAD_OPTION);
        assert_eq!(image_size(dir.path(), Some(1 << 60)).unwrap_err().code, codes::DISK_FULL);
    }

    #[test]
    fn a_file_that_is_no_btrfs_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("pool.img");
        for content in [&b""[..], &[0; 0x20000]] {
            fs::write(&image, content).unwrap();
            assert_eq!(check_image(&image).unwrap_err().code, codes::POOL_FAILED);
        }
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = run("mkfs.none", "none-progs", &mut Command::new("mkfs.none")).unwrap_err();
        assert_eq!(error.code, codes::TOOL_MISSING);
        assert!(error.fix.contains("none-progs"));
    }
}
