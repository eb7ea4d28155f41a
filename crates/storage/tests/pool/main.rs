//! The pool for real: a btrfs image in a temporary directory, mounted. Needs root.

#![allow(missing_docs, clippy::unwrap_used)]

mod copies;
mod library;
mod limits;
mod restart;
mod saved;
mod torn;
mod written;

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use atoll_core::{LayerId, error::codes};
use atoll_storage::{BuildManifest, Disk, Handle, Layer, Options, Service};

const MIB: u64 = 1 << 20;

/// A data directory whose pool is unmounted at the end, whatever happened.
struct DataDir(tempfile::TempDir);

impl DataDir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn options(&self, disks: usize) -> Options {
        Options {
            data_dir: self.path().to_owned(),
            pool_bytes: Some(1024 * MIB),
            disks,
            keep: HashSet::new(),
        }
    }

    async fn start(&self, disks: usize) -> Service {
        Service::start(self.options(disks)).await.unwrap()
    }

    /// A start that keeps what has one of these names.
    async fn start_keeping(&self, names: &[&str]) -> Service {
        let keep = names.iter().map(|name| (*name).to_owned()).collect();
        Service::start(Options { keep, ..self.options(0) }).await.unwrap()
    }

    fn mounted(&self) -> bool {
        let point = self.path().join("pool");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().any(|line| line.split(' ').nth(4) == point.to_str())
    }

    fn disks(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path().join("pool/disks")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Ids of the layers that are on disk.
    fn layers(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path().join("layers")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "boot").collect()
    }

    /// Quota groups of disks and of what is saved.
    fn qgroups(&self) -> usize {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.path().join("pool");
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == point.to_str()).unwrap();
        let device = line.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap();
        let device = Path::new(device).file_name().unwrap();
        let system = fs::read_dir("/sys/fs/btrfs").unwrap().map(|entry| entry.unwrap().path());
        let system =
            system.into_iter().find(|system| system.join("devices").join(device).exists()).unwrap();
        fs::read_dir(system.join("qgroups"))
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
                (name.starts_with("0_") || name.starts_with("1_")) && name != "0_5"
            })
            .count()
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.mounted() {
            let point = self.path().join("pool");
            drop(Command::new("umount").arg("--lazy").arg(point).status());
        }
    }
}

/// An overlay over a disk, mounted as sandboxes have it.
struct Overlay {
    root: tempfile::TempDir,
    _lower: Option<tempfile::TempDir>,
}

impl Overlay {
    fn new(disk: &Disk) -> Self {
        let lower = tempfile::tempdir().unwrap();
        fs::write(lower.path().join("lower"), "of the template").unwrap();
        let mut mounted = Self::on(disk, lower.path());
        mounted._lower = Some(lower);
        mounted
    }

    /// One over this.
    fn on(disk: &Disk, lower: &Path) -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,metacopy=off,index=off,volatile",
            lower.display(),
            disk.upper().display(),
            disk.work().display()
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(root.path());
        assert!(mount.status().unwrap().success());
        Self { root, _lower: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.root.path()).status());
    }
}

/// Waits until a condition holds, for at most five minutes.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(300), wait).await.is_ok(), "never: {what}");
}

/// Waits until a disk takes less than `bytes`, which the kernel's cleaner decides: for at most five
/// minutes.
async fn until_used_is_below(disk: &Disk, bytes: u64) {
    let shrink = async {
        while disk.usage().await.unwrap().0 > bytes {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let shrunk = tokio::time::timeout(Duration::from_secs(300), shrink).await;
    assert!(shrunk.is_ok(), "never below {bytes}");
}

/// Writes until it fails or `bytes` are written, and makes sure that it is on disk.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    // Not compressible, should a file system try.
    let block: Vec<u8> =
        (0..MIB as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for _ in 0..bytes / MIB {
        file.write_all(&block)?;
    }
    file.sync_all()
}

fn layer(name: &str) -> Layer {
    Layer { name: name.into(), recipe: "0".into(), created_at: jiff::Timestamp::UNIX_EPOCH }
}

/// The id of a build.
fn build_id(number: u32) -> String {
    format!("7a3e4f0c-6d3b-4b0e-9f43-3e1f{number:08x}")
}

fn manifest(number: u32, layers: &[LayerId]) -> BuildManifest {
    BuildManifest {
        id: build_id(number),
        template: atoll_core::TemplateId::generate().unwrap(),
        alias: None,
        layers: layers.to_vec(),
        envd_version: "0.6.13".into(),
        vcpu: 2,
        memory_mb: 512,
        disk_mb: 1024,
        default_user: "user".into(),
        default_workdir: None,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        recipe_digest: "0".into(),
        step: None,
        parent: None,
        env_vars: Default::default(),
        start: None,
        snapshot: None,
        stack: Vec::new(),
        control_secret: None,
    }
}

/// A new layer with one file.
async fn small_layer(storage: &Handle) -> LayerId {
    let draft = storage.new_layer().await.unwrap();
    fs::write(draft.dir().join("file"), "content").unwrap();
    draft.commit(layer("small")).await.unwrap()
}

async fn digest(storage: &Handle, id: &atoll_core::LayerId) -> Option<String> {
    storage.layers().await.into_iter().find(|layer| &layer.id == id)?.digest
}

#[tokio::test]
async fn a_disk_holds_what_its_limit_says_and_no_more() {
    let dir = DataDir::new();
    let service = dir.start(1).await;
    let storage = service.handle();
    let small = storage.take_disk(50 * MIB).await.unwrap();
    let other = storage.take_disk(200 * MIB).await.unwrap();

    let error = fill(&small.upper().join("file"), 100 * MIB).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    let (used, limit) = small.usage().await.unwrap();
    assert_eq!(limit, 50 * MIB);
    assert!(used <= limit && used > 40 * MIB, "{used}");

    // A full disk is no dead end, and none of its neighbour's business.
    fill(&other.upper().join("file"), 100 * MIB).unwrap();
    fs::remove_file(small.upper().join("file")).unwrap();
    fill(&small.upper().join("again"), 20 * MIB).unwrap();

    small.destroy().await.unwrap();
    other.destroy().await.unwrap();
    service.shutdown().await;
    assert!(!dir.mounted());
}

#[tokio::test]
async fn no_disk_can_fill_the_pool() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let (_, total) = storage.usage().unwrap();
    let greedy = storage.take_disk(100 * total).await.unwrap();
    assert_eq!(greedy.usage().await.unwrap().1, total / 4);
    let error = fill(&greedy.upper().join("file"), total / 2).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    drop(greedy);
    service.shutdown().await;
}

#[tokio::test]
async fn usage_follows_what_is_written() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let disk = service.handle().take_disk(500 * MIB).await.unwrap();
    let (empty, _) = disk.usage().await.unwrap();
    assert!(empty < MIB, "{empty}");
    fill(&disk.upper().join("file"), 64 * MIB).unwrap();
    let (used, _) = disk.usage().await.unwrap();
    assert!((64 * MIB..66 * MIB).contains(&used), "{used}");
    drop(disk);
    service.shutdown().await;
}

#[tokio::test]
async fn a_destroyed_disk_gives_its_space_back() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let (before, total) = storage.usage().unwrap();
    assert!(total >= 900 * MIB, "{total}");
    let disk = storage.take_disk(240 * MIB).await.unwrap();
    fill(&disk.upper().join("file"), 200 * MIB).unwrap();
    // They count once a transaction of the file system has ended.
    until("they count", || storage.usage().unwrap().0 > before + 190 * MIB).await;
    disk.destroy().await.unwrap();
    assert_eq!(dir.disks(), Vec::<PathBuf>::new());
    until("the space is free", || storage.usage().unwrap().0 < before + 10 * MIB).await;
    service.shutdown().await;
}

#[tokio::test]
async fn a_hundred_disks_destroyed_or_dropped_leave_nothing() {
    let dir = DataDir::new();
    let service = dir.start(3).await;
    let storage = service.handle();
    for round in 0..100 {
        let disk = storage.take_disk(10 * MIB).await.unwrap();
        fs::write(disk.upper().join("file"), "x").unwrap();
        assert!(disk.work().is_dir());
        if round % 2 == 0 {
            disk.destroy().await.unwrap();
        } else {
            drop(disk);
        }
    }
    // What remains are the ready ones.
    until("three are ready and no others left", || {
        storage.ready_disks() == 3 && dir.disks().len() == 3
    })
    .await;
    until("their quota groups are gone", || dir.qgroups() == 3).await;
    service.shutdown().await;
    assert!(!dir.mounted());
}

#[tokio::test]
async fn a_create_that_is_given_up_leaves_no_disk() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    for _ in 0..20 {
        let mut take = Box::pin(storage.take_disk(MIB));
        // Polled once, so that the work is under way; then dropped, with its result if it has one.
        std::future::poll_fn(|context| {
            drop(take.as_mut().poll(context));
            std::task::Poll::Ready(())
        })
        .await;
    }
    // Work begins in the order it was asked for: when this one is there, all others have begun.
    storage.take_disk(MIB).await.unwrap().destroy().await.unwrap();
    until("no disk is left", || dir.disks().is_empty()).await;
    service.shutdown().await;
}

#[tokio::test]
async fn a_start_after_a_crash_reuses_the_mount_and_clears_what_nobody_owns() {
    let dir = DataDir::new();
    let service = dir.start(2).await;
    let storage = service.handle();
    let kept = storage.new_layer().await.unwrap();
    fs::write(kept.dir().join("file"), "kept").unwrap();
    let kept = kept.commit(layer("kept")).await.unwrap();
    let torn = storage.new_layer().await.unwrap();
    let torn_dir = torn.dir();
    fs::write(torn_dir.join("file"), "torn").unwrap();
    let disk = storage.take_disk(10 * MIB).await.unwrap();
    fs::write(disk.upper().join("file"), "x").unwrap();
    until("the others are there", || dir.disks().len() == 3).await;
    // As SIGKILL does it: nothing is dropped.
    std::mem::forget((torn, disk));
    std::mem::forget(service);
    assert!(dir.mounted());

    let service = dir.start(0).await;
    assert_eq!(dir.disks(), Vec::<PathBuf>::new());
    assert!(!torn_dir.exists());
    let layers = service.handle().layers().await;
    assert_eq!(layers.iter().map(|layer| &layer.id).collect::<Vec<_>>(), [&kept]);
    assert_eq!(fs::read(service.handle().layer_dir(&kept).join("file")).unwrap(), b"kept");
    service.shutdown().await;
}

#[tokio::test]
async fn the_pool_is_closed_to_users_of_the_host() {
    use std::os::unix::fs::PermissionsExt;
    let dir = DataDir::new();
    let service = dir.start(0).await;
    for private in ["pool", "layers", "builds"] {
        let mode = fs::metadata(dir.path().join(private)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{private}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = dir.path().join("pool").to_str().unwrap().to_owned();
    let mount = mounts.lines().find(|line| line.contains(&point)).unwrap();
    let options: Vec<&str> = mount.split(' ').nth(5).unwrap().split(',').collect();
    assert!(options.contains(&"nodev") && options.contains(&"nosuid"), "{mount}");
    service.shutdown().await;
}

#[tokio::test]
async fn a_disk_and_a_layer_under_one_overlay_never_share_an_inode_number() {
    use std::os::unix::fs::MetadataExt;
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let draft = storage.new_layer().await.unwrap();
    for n in 0..50 {
        fs::write(draft.dir().join(format!("lower{n}")), "").unwrap();
    }
    let layer = draft.commit(layer("test")).await.unwrap();
    let disk = storage.take_disk(50 * MIB).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let options = format!(
        "xino=on,lowerdir={},upperdir={},workdir={}",
        storage.layer_dir(&layer).display(),
        disk.upper().display(),
        disk.work().display()
    );
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(root.path());
    assert!(mount.status().unwrap().success());
    let mut seen = Vec::new();
    for n in 0..50 {
        fs::write(root.path().join(format!("upper{n}")), "").unwrap();
    }
    for entry in fs::read_dir(root.path()).unwrap() {
        let meta = entry.unwrap().metadata().unwrap();
        seen.push((meta.dev(), meta.ino()));
    }
    assert!(Command::new("umount").arg(root.path()).status().unwrap().success());
    assert_eq!(seen.len(), 100);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 100);
    disk.destroy().await.unwrap();
    service.shutdown().await;
}

#[tokio::test]
async fn layers_and_builds_survive_a_restart() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let draft = storage.new_layer().await.unwrap();
    fs::write(draft.dir().join("file"), "content").unwrap();
    fs::write(draft.scratch().join("input"), "passing").unwrap();
    let scratch = draft.scratch();
    let id = draft.commit(layer("base")).await.unwrap();
    assert!(!scratch.exists());
    let manifest =
        BuildManifest { alias: Some("base".into()), ..manifest(1, std::slice::from_ref(&id)) };
    storage.put_build(&manifest).await.unwrap();
    until("the digest is there", || {
        fs::exists(dir.path().join("layers").join(id.as_str()).join("digest")).unwrap()
    })
    .await;
    service.shutdown().await;

    let service = dir.start(0).await;
    let storage = service.handle();
    assert_eq!(storage.build(&manifest.id).await.unwrap(), Some(manifest.clone()));
    assert_eq!(storage.build("../../etc/passwd").await.unwrap(), None);
    assert_eq!(digest(&storage, &id).await.unwrap().len(), 64);
    let bad = BuildManifest { id: "../escape".into(), ..manifest.clone() };
    assert_eq!(storage.put_build(&bad).await.unwrap_err().code, codes::INVALID_REQUEST);
    service.shutdown().await;

    // A layer that someone deleted by hand is missed when its build is asked for.
    fs::remove_dir_all(dir.path().join("layers").join(id.as_str())).unwrap();
    let service = dir.start(0).await;
    let error = service.handle().build(&manifest.id).await.unwrap_err();
    assert_eq!(error.code, codes::LAYER_CORRUPT);
    service.shutdown().await;
}

#[tokio::test]
async fn an_abandoned_draft_is_removed() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let draft = storage.new_layer().await.unwrap();
    fs::create_dir(draft.dir().join("usr")).unwrap();
    drop(draft);
    until("the draft is gone", || dir.layers().is_empty()).await;

    service.shutdown().await;
}

#[tokio::test]
async fn what_is_in_the_pools_place_is_named_and_left_alone() {
    let dir = DataDir::new();
    fs::write(dir.path().join("pool.img"), "not a file system").unwrap();
    let error = Service::start(dir.options(0)).await.unwrap_err();
    assert_eq!(error.code, codes::POOL_FAILED);
    assert!(error.message.contains("pool.img"), "{error}");
    assert_eq!(fs::read(dir.path().join("pool.img")).unwrap(), b"not a file system");
    fs::remove_file(dir.path().join("pool.img")).unwrap();

    let point = dir.path().join("pool");
    assert!(
        Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&point).status().unwrap().success()
    );
    let error = Service::start(dir.options(0)).await.unwrap_err();
    assert_eq!(error.code, codes::POOL_FAILED);
    assert!(error.fix.contains("umount"), "{error}");
}

#[tokio::test]
async fn a_pool_in_use_stays_mounted_and_is_found_again() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let disk = service.handle().take_disk(10 * MIB).await.unwrap();
    let open = fs::File::create(disk.upper().join("open")).unwrap();
    service.shutdown().await;
    assert!(dir.mounted());
    drop((open, disk));
    let service = dir.start(0).await;
    assert_eq!(dir.disks(), Vec::<PathBuf>::new());
    service.shutdown().await;
    assert!(!dir.mounted());
}
