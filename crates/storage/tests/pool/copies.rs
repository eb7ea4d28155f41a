//! Copies of what is saved, many branches of one, and what each of them costs.

use std::{fs, io, time::Instant};

use atoll_core::{error::codes, lifecycle::Kept};
use atoll_storage::{BuildManifest, Handle, Options, Service};

use crate::{DataDir, MIB, build_id, fill, manifest, until};

#[tokio::test]
async fn a_copy_of_what_is_saved_is_independent_of_it() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(100 * MIB).await.unwrap();
    fill(&disk.upper().join("file"), 20 * MIB).unwrap();
    let memory = storage.begin_saved("source", 100 * MIB, 100 * MIB).await.unwrap();
    fill(&memory.join("pages-1.img"), 30 * MIB).unwrap();
    fs::create_dir(memory.join("work")).unwrap();
    fs::write(memory.join("work/small"), "in its inode").unwrap();
    let source = storage.seal(&disk, "source").await.unwrap();
    let pages = fs::read(memory.join("pages-1.img")).unwrap();
    disk.destroy().await.unwrap();

    let (before, _) = storage.usage().unwrap();
    // In the place of something else.
    storage.begin_saved("copy", 0, 0).await.unwrap();
    let copy = storage.copy_saved(&source, "copy").await.unwrap();
    assert_eq!(copy.name(), "copy");
    let error = fs::write(copy.memory_dir().join("pages-1.img"), "x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    let (after, _) = storage.usage().unwrap();
    assert!(after < before + 2 * MIB, "{} bytes for a copy", after - before);
    source.destroy().await.unwrap();
    assert_eq!(fs::read(copy.memory_dir().join("pages-1.img")).unwrap(), pages);
    assert_eq!(fs::read(copy.memory_dir().join("work/small")).unwrap(), b"in its inode");
    let branch = storage.branch(&copy, 100 * MIB).await.unwrap();
    assert_eq!(fs::metadata(branch.upper().join("file")).unwrap().len(), 20 * MIB);
    // Of a sandbox's own, what the first disk wrote counts, also after a detour.
    assert!(branch.usage().await.unwrap().0 > 19 * MIB);
    service.shutdown().await;

    // It survives like any other.
    let service = dir.start_keeping(&["copy"]).await;
    let storage = service.handle();
    let copy = storage.saved("copy").await.unwrap().unwrap();
    assert_eq!(fs::read(copy.memory_dir().join("pages-1.img")).unwrap(), pages);
    for bad in ["copy", "", "a/b", "../x"] {
        let error = storage.copy_saved(&copy, bad).await.unwrap_err();
        assert_eq!(error.code, codes::INVALID_REQUEST, "{bad}");
    }
    let gone = copy.clone();
    copy.destroy().await.unwrap();
    let error = storage.copy_saved(&gone, "other").await.unwrap_err();
    assert_eq!(error.code, codes::NOT_FOUND);
    assert!(!dir.path().join("pool/saved/other").exists());
    drop(branch);
    until("nothing is left", || dir.disks().is_empty() && dir.qgroups() == 0).await;
    service.shutdown().await;
}

#[tokio::test]
async fn copies_to_and_fro_at_once_end_and_are_whole() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(10 * MIB).await.unwrap();
    fs::write(disk.upper().join("file"), "content").unwrap();
    let (one, two) =
        (storage.seal(&disk, "one").await.unwrap(), storage.seal(&disk, "two").await.unwrap());
    for _ in 0..10 {
        let (there, back) =
            tokio::join!(storage.copy_saved(&one, "two"), storage.copy_saved(&two, "one"));
        there.unwrap();
        back.unwrap();
    }
    for saved in [one, two] {
        let branch = storage.branch(&saved, 10 * MIB).await.unwrap();
        assert_eq!(fs::read(branch.upper().join("file")).unwrap(), b"content");
    }
    drop(disk);
    service.shutdown().await;
}

#[tokio::test]
async fn two_hundred_forks_of_one_snapshot_cost_what_they_write() {
    const FORKS: usize = 200;
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let source = storage.take_disk(100 * MIB).await.unwrap();
    fill(&source.upper().join("big"), 60 * MIB).unwrap();
    let saved = storage.seal(&source, &build_id(1)).await.unwrap();
    storage.put_build(&snapshot(1)).await.unwrap();
    // What the source does afterwards is none of their business, nor that it goes.
    fs::remove_file(source.upper().join("big")).unwrap();
    fill(&source.upper().join("more"), 30 * MIB).unwrap();
    let other = storage.seal(&source, &build_id(2)).await.unwrap();
    storage.put_build(&snapshot(2)).await.unwrap();
    source.destroy().await.unwrap();

    let (before, _) = storage.usage().unwrap();
    let mut forks = Vec::new();
    let mut times = Vec::new();
    for _ in 0..FORKS {
        let started = Instant::now();
        forks.push(storage.branch(&saved, 80 * MIB).await.unwrap());
        times.push(started.elapsed());
    }
    let mean = |times: &[std::time::Duration]| times.iter().sum::<std::time::Duration>() / 20;
    println!("first 20: {:?} each, last 20: {:?}", mean(&times[..20]), mean(&times[FORKS - 20..]));
    for (number, fork) in forks.iter().enumerate() {
        fs::write(fork.upper().join("own"), number.to_string()).unwrap();
    }
    let (after, _) = storage.usage().unwrap();
    assert!(after < before + FORKS as u64 * MIB / 4, "{} bytes for all", after - before);
    for (number, fork) in forks.iter().enumerate() {
        assert_eq!(fs::read_to_string(fork.upper().join("own")).unwrap(), number.to_string());
        assert_eq!(fs::metadata(fork.upper().join("big")).unwrap().len(), 60 * MIB);
        let (used, limit) = fork.usage().await.unwrap();
        let own = used - 60 * MIB;
        assert!(own < MIB && limit == 80 * MIB, "{number}: {used} of {limit}");
    }
    // Each has its limit for itself.
    fill(&forks[7].upper().join("big2"), 18 * MIB).unwrap();
    fill(&forks[8].upper().join("big2"), 22 * MIB).unwrap_err();
    fill(&forks[9].upper().join("big2"), 18 * MIB).unwrap();

    assert!(storage.delete_build(saved.name()).await.unwrap());
    assert!(storage.delete_build(other.name()).await.unwrap());
    assert_eq!(fs::metadata(forks[0].upper().join("big")).unwrap().len(), 60 * MIB);
    drop(forks);
    until("nothing is left", || dir.disks().is_empty() && dir.qgroups() == 0).await;
    service.shutdown().await;
}

/// A manifest of what is saved as a build.
fn snapshot(number: u32) -> BuildManifest {
    BuildManifest { snapshot: Some(Kept::Disk), ..manifest(number, &[]) }
}

async fn unique(storage: &Handle, name: &str) -> Option<u64> {
    storage.unique_bytes(name).await.unwrap()
}

#[tokio::test]
async fn unique_bytes_are_those_that_a_delete_frees() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(100 * MIB).await.unwrap();
    fill(&disk.upper().join("shared"), 8 * MIB).unwrap();
    for (name, size) in [("one", 1), ("two", 2)] {
        fill(&disk.upper().join("own"), size * MIB).unwrap();
        let memory = storage.begin_saved(name, 10 * MIB, 10 * MIB).await.unwrap();
        fill(&memory.join("pages"), 3 * MIB).unwrap();
        storage.seal(&disk, name).await.unwrap();
    }
    // Not flushed, and not in any copy.
    fs::write(disk.upper().join("unwritten"), vec![7; MIB as usize / 2]).unwrap();
    fs::hard_link(disk.upper().join("unwritten"), disk.upper().join("twice")).unwrap();
    assert_eq!(unique(&storage, "one").await, Some(4 * MIB));
    assert_eq!(unique(&storage, "two").await, Some(3 * MIB), "its disk is that of the source");
    assert_eq!(unique(&storage, disk.name()).await, Some(MIB / 2));
    assert_eq!(unique(&storage, "none").await, None);
    assert_eq!(unique(&storage, "../disks").await, None);

    disk.destroy().await.unwrap();
    // The kernel lets go of what the disk held in its own time.
    for (name, bytes) in [("one", 4), ("two", 5)] {
        let wait = async {
            while unique(&storage, name).await != Some(bytes * MIB) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(300), wait).await;
        assert!(waited.is_ok(), "{name}: {:?}", unique(&storage, name).await);
    }
    // A copy shares all, until the other goes.
    let two = storage.saved("two").await.unwrap().unwrap();
    storage.copy_saved(&two, "three").await.unwrap();
    assert_eq!(unique(&storage, "two").await, Some(0));
    assert_eq!(unique(&storage, "three").await, Some(0));

    let (before, _) = storage.usage().unwrap();
    storage.drop_saved("one").await.unwrap();
    until("4 MiB are free", || {
        let freed = before.saturating_sub(storage.usage().unwrap().0);
        (4 * MIB..5 * MIB).contains(&freed)
    })
    .await;
    service.shutdown().await;
}

/// A link that leads out of the disk is not followed, and what is no file is not opened.
#[tokio::test]
async fn measuring_a_disk_stays_in_it() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(50 * MIB).await.unwrap();
    let other = storage.take_disk(50 * MIB).await.unwrap();
    fill(&other.upper().join("file"), 4 * MIB).unwrap();
    fill(&disk.upper().join("file"), 2 * MIB).unwrap();
    for (name, target) in [("dir", other.upper()), ("link", other.upper().join("file"))] {
        std::os::unix::fs::symlink(target, disk.upper().join(name)).unwrap();
    }
    let pipe = std::process::Command::new("mkfifo").arg(disk.upper().join("pipe")).status();
    assert!(pipe.unwrap().success());
    assert_eq!(unique(&storage, disk.name()).await, Some(2 * MIB));
    drop((disk, other));
    service.shutdown().await;
}

#[tokio::test]
async fn checkpoints_cannot_fill_the_pool() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(50 * MIB).await.unwrap();
    let error = storage.begin_saved("one", 1000 * MIB, 1000 * MIB).await.unwrap_err();
    assert_eq!(error.code, codes::DISK_FULL);
    assert!(error.message.contains("1000 MiB"), "{error}");
    assert!(storage.saved("one").await.unwrap().is_none());

    storage.begin_saved("one", 600 * MIB, 600 * MIB).await.unwrap();
    // Before any of it is written.
    let error = storage.begin_saved("two", 600 * MIB, 600 * MIB).await.unwrap_err();
    assert_eq!(error.code, codes::DISK_FULL);
    // Who begins again asks once, who is done needs no more than was written.
    storage.begin_saved("one", 600 * MIB, 600 * MIB).await.unwrap();
    storage.seal(&disk, "one").await.unwrap();
    storage.begin_saved("two", 600 * MIB, 600 * MIB).await.unwrap();
    assert!(storage.begin_saved("three", 600 * MIB, 600 * MIB).await.is_err());
    storage.drop_saved("two").await.unwrap();
    storage.begin_saved("three", 600 * MIB, 600 * MIB).await.unwrap();
    // A disk alone is saved without.
    storage.seal(&disk, "four").await.unwrap();
    drop(disk);
    service.shutdown().await;

    // What a crash interrupted is set aside no longer.
    let service = Service::start(Options { ..dir.options(0) }).await.unwrap();
    service.handle().begin_saved("three", 600 * MIB, 600 * MIB).await.unwrap();
    service.shutdown().await;
}
