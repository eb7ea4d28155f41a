//! What a guest could take of the pool beyond its limit, by what is done with it again and again.

use std::{fs, io, path::Path, process::Command};

use atoll_core::error::codes;
use atoll_storage::{Disk, Options, Service};

use crate::{DataDir, MIB, Overlay, build_id, fill, until, until_used_is_below};

/// Writes until not even a little can be written.
fn fill_up(dir: &Path, round: usize) {
    fill(&dir.join(format!("big{round}")), 200 * MIB).unwrap_err();
    let small = (0..100_000).map(|n| fs::write(dir.join(format!("{round}-{n}")), [7; 3000]));
    assert!(small.take_while(Result::is_ok).count() < 10_000);
}

async fn used(disk: &Disk) -> u64 {
    fs::File::open(disk.upper()).unwrap().sync_all().unwrap();
    disk.usage().await.unwrap().0
}

#[tokio::test]
async fn a_checkpoint_takes_no_more_than_was_set_aside() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(20 * MIB).await.unwrap();
    let memory = storage.begin_saved("some", 20 * MIB, 20 * MIB).await.unwrap();
    fill(&memory.join("pages-1.img"), 20 * MIB).unwrap();
    let error = fill(&memory.join("pages-2.img"), 5 * MIB).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    // Nobody else's limit, and it goes like any other.
    fill(&disk.upper().join("file"), 15 * MIB).unwrap();
    // What is written counts when the file system is synced.
    rustix::fs::syncfs(fs::File::open(&memory).unwrap()).unwrap();
    let (before, _) = storage.usage().unwrap();
    storage.drop_saved("some").await.unwrap();
    until("its space is free", || storage.usage().unwrap().0 + 19 * MIB < before).await;

    // More than it must have, while there is plenty; then no more than that.
    let plenty = storage.begin_saved("one", MIB, 100 * MIB).await.unwrap();
    fill(&plenty.join("pages"), 99 * MIB).unwrap();
    for number in 0..20 {
        storage.begin_saved(&format!("more{number}"), 5 * MIB, 200 * MIB).await.unwrap();
    }
    let error = storage.begin_saved("last", 150 * MIB, 200 * MIB).await.unwrap_err();
    assert_eq!(error.code, codes::DISK_FULL);
    // What a crash interrupted leaves no quota group.
    std::mem::forget((disk, service));
    let service = dir.start(0).await;
    until("nothing is left", || dir.disks().is_empty() && dir.qgroups() == 0).await;
    service.shutdown().await;
}

#[tokio::test]
async fn a_chain_of_forks_holds_no_more_than_one_disk() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let mut disk = storage.take_disk(70 * MIB).await.unwrap();
    for round in 0..10 {
        fill_up(&disk.upper(), round);
        let saved = storage.seal(&disk, &build_id(1)).await.unwrap();
        // As a rewind does it, every other time: by way of the sandbox's own.
        let from = if round % 2 == 0 {
            saved.clone()
        } else {
            storage.copy_saved(&saved, "rewound").await.unwrap()
        };
        disk.destroy().await.unwrap();
        disk = storage.branch(&from, 70 * MIB).await.unwrap();
        from.destroy().await.unwrap();
        storage.drop_saved(&build_id(1)).await.unwrap();
    }
    let held = |name: fs::DirEntry| name.metadata().unwrap().len();
    let bytes: u64 = fs::read_dir(disk.upper()).unwrap().map(|entry| held(entry.unwrap())).sum();
    assert!((60 * MIB..90 * MIB).contains(&bytes), "{} MiB at a limit of 70", bytes / MIB);
    disk.destroy().await.unwrap();
    until("nothing is left", || dir.disks().is_empty() && dir.qgroups() == 0).await;
    service.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_can_be_resumed_again_and_again_and_does_not_grow() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let mut disk = storage.take_disk(20 * MIB).await.unwrap();
    for round in 0..20 {
        let overlay = Overlay::new(&disk);
        fill_up(&overlay.path(""), round);
        let saved = storage.seal(&disk, "full").await.unwrap();
        drop(overlay);
        disk.destroy().await.unwrap();
        disk = storage.branch(&saved, 20 * MIB).await.unwrap();
        saved.destroy().await.unwrap();
    }
    let overlay = Overlay::new(&disk);
    fs::write(overlay.path("another"), "some room is left").unwrap();
    let used = used(&disk).await;
    assert!(used < 48 * MIB, "{used} at a limit of 20 MiB");
    // No dead end.
    for round in 0..20 {
        fs::remove_file(overlay.path(&format!("big{round}"))).unwrap();
    }
    until_used_is_below(&disk, 30 * MIB).await;
    fill(&overlay.path("new"), 10 * MIB).unwrap();
    drop(overlay);
    disk.destroy().await.unwrap();
    service.shutdown().await;
}

/// A disk that somebody still looks at when its sandbox has been saved is deleted later.
#[tokio::test]
async fn what_a_dying_disk_wrote_counts_for_its_successor() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(50 * MIB).await.unwrap();
    fill(&disk.upper().join("file"), 30 * MIB).unwrap();
    let saved = storage.seal(&disk, "own").await.unwrap();
    let next = storage.branch(&saved, 50 * MIB).await.unwrap();
    assert!(used(&next).await > 30 * MIB);
    drop(disk);
    saved.destroy().await.unwrap();
    until("one disk is left", || {
        dir.disks().iter().filter(|path| path.extension().is_none()).count() == 1
    })
    .await;
    let saved = storage.seal(&next, "own").await.unwrap();
    drop(next);
    let last = storage.branch(&saved, 50 * MIB).await.unwrap();
    assert!(used(&last).await > 30 * MIB);
    let error = fill(&last.upper().join("more"), 40 * MIB).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    drop((last, saved));
    service.shutdown().await;
}

/// Whoever gets hold of a sandbox's disk directory, as what restores a checkpoint might, finds
/// nothing there that says for whom it counts, and cannot keep it from being deleted.
#[tokio::test]
async fn what_is_in_a_disk_is_not_believed() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(50 * MIB).await.unwrap();
    let saved = storage.seal(&disk, "own").await.unwrap();
    let branch = storage.branch(&saved, 50 * MIB).await.unwrap();
    let root = branch.upper().parent().unwrap().to_owned();
    let names = |root: &Path| {
        let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    };
    assert_eq!(names(&root), ["upper", "work"]);

    let make = |path: &Path| {
        let mut make = Command::new("btrfs");
        make.args(["-q", "subvolume", "create"]).arg(path);
        make.status().unwrap().success()
    };
    for path in ["upper/dir", "upper/dir/one", "upper/dir/one/two", "upper/other"] {
        if path == "upper/dir" {
            fs::create_dir(root.join(path)).unwrap();
        } else {
            assert!(make(&root.join(path)), "{path}");
        }
        fs::write(root.join(path).join("file"), "content").unwrap();
    }
    // A sandbox itself cannot do that.
    let overlay = Overlay::new(&disk);
    assert!(!make(&overlay.path("nested")));
    drop(overlay);
    branch.destroy().await.unwrap();
    assert!(!root.exists());
    drop((disk, saved));
    service.shutdown().await;
}

/// One thing that cannot be deleted keeps nothing from starting.
#[tokio::test]
async fn what_cannot_be_deleted_waits_for_a_later_start() {
    let dir = DataDir::new();
    dir.start(0).await.shutdown().await;
    let service = dir.start(0).await;
    let stuck = [dir.path().join("pool/disks/stuck"), dir.path().join("pool/saved/stuck")];
    for path in &stuck {
        // No subvolume, and in use.
        fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "none"]).arg(path);
        assert!(mount.status().unwrap().success());
    }
    std::mem::forget(service);
    let service = dir.start(0).await;
    service.handle().take_disk(MIB).await.unwrap().destroy().await.unwrap();
    for path in &stuck {
        assert!(path.exists());
        assert!(Command::new("umount").arg(path).status().unwrap().success());
    }
    service.shutdown().await;
}

/// A file system of its own, as small as the host's may get.
struct SmallHost(tempfile::TempDir);

impl SmallHost {
    fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"]).arg(dir.path());
        assert!(mount.status().unwrap().success());
        Self(dir)
    }
}

impl Drop for SmallHost {
    fn drop(&mut self) {
        for path in [self.0.path().join("pool"), self.0.path().to_owned()] {
            drop(Command::new("umount").args(["--lazy", "--quiet"]).arg(path).status());
        }
    }
}

#[tokio::test]
async fn a_full_host_is_said_to_be_full_before_the_pool_breaks() {
    let host = SmallHost::new(400);
    let options = || Options {
        data_dir: host.0.path().to_owned(),
        pool_bytes: Some(256 * MIB),
        disks: 0,
        keep: Default::default(),
    };
    let service = Service::start(options()).await.unwrap();
    let storage = service.handle();
    let disk = storage.take_disk(50 * MIB).await.unwrap();
    let saved = storage.seal(&disk, "some").await.unwrap();
    let ballast = host.0.path().join("ballast");
    assert_eq!(fill(&ballast, 500 * MIB).unwrap_err().kind(), io::ErrorKind::StorageFull);
    for error in [
        storage.take_disk(MIB).await.unwrap_err(),
        storage.branch(&saved, MIB).await.unwrap_err(),
        storage.begin_saved("other", MIB, MIB).await.unwrap_err(),
    ] {
        assert_eq!(error.code, codes::DISK_FULL);
        assert!(error.message.contains("0 MiB left"), "{error}");
        assert!(error.message.contains(host.0.path().to_str().unwrap()), "{error}");
    }
    fs::remove_file(&ballast).unwrap();
    storage.branch(&saved, MIB).await.unwrap().destroy().await.unwrap();

    // Full all the same: the pool is read-only for good, and the next start says what to do.
    let file = fs::File::create(disk.upper().join("held")).unwrap();
    fill(&ballast, 500 * MIB).unwrap_err();
    let point = host.0.path().join("pool");
    let read_only = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut lines = mounts.lines().filter(|line| line.contains(point.to_str().unwrap()));
        lines.next_back().unwrap().split(" - ").nth(1).unwrap().contains(" ro")
    };
    until("the kernel gives it up", || {
        drop(fill(&disk.upper().join("file"), 20 * MIB));
        drop(fs::write(disk.upper().join("file"), "x"));
        read_only()
    })
    .await;
    std::mem::forget((disk, service));
    let length = fs::metadata(&ballast).unwrap().len();
    fs::OpenOptions::new().write(true).open(&ballast).unwrap().set_len(length - 3 * MIB).unwrap();
    let error = Service::start(options()).await.unwrap_err();
    assert_eq!(error.code, codes::POOL_FAILED, "{error}");
    assert!(error.message.contains("read-only") && error.message.contains(" MiB free"), "{error}");
    assert!(error.fix.contains("free space"), "{error:?}");
    // Nothing holds it any more, and there is room.
    drop(file);
    fs::remove_file(&ballast).unwrap();
    Service::start(options()).await.unwrap().shutdown().await;
}
