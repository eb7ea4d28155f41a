//! Copies of disks: sealed, branched, dropped.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

use atoll_core::error::codes;
use atoll_storage::{Disk, Handle, Options, Service};

use crate::{DataDir, MIB, Overlay, build_id, fill, until, until_used_is_below};

fn read(disk: &Disk, file: &str) -> String {
    fs::read_to_string(disk.upper().join(file)).unwrap()
}

fn write(disk: &Disk, file: &str, text: &str) {
    fs::write(disk.upper().join(file), text).unwrap();
}

/// What a pause and a resume do to a disk.
async fn rest(storage: &Handle, disk: Disk, limit: u64) -> Disk {
    let saved = storage.seal(&disk, "rest").await.unwrap();
    disk.destroy().await.unwrap();
    let disk = storage.branch(&saved, limit).await.unwrap();
    saved.destroy().await.unwrap();
    disk
}

#[tokio::test]
async fn a_copy_is_the_disk_at_that_moment_and_goes_its_own_way() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(100 * MIB).await.unwrap();
    write(&disk, "file", "before");
    fill(&disk.upper().join("big"), 5 * MIB).unwrap();
    let big = fs::read(disk.upper().join("big")).unwrap();
    // Open, and not synced.
    write(&disk, "unwritten", "in memory still");
    let saved = storage.seal(&disk, "snapshot").await.unwrap();
    write(&disk, "file", "after");
    fs::remove_file(disk.upper().join("big")).unwrap();

    let one = storage.branch(&saved, 100 * MIB).await.unwrap();
    let two = storage.branch(&saved, 100 * MIB).await.unwrap();
    assert!(one.name() != two.name() && one.name() != disk.name());
    write(&one, "file", "of one");
    fs::remove_file(one.upper().join("unwritten")).unwrap();
    for copy in [&two, &storage.branch(&saved, 100 * MIB).await.unwrap()] {
        assert_eq!(read(copy, "file"), "before");
        assert_eq!(read(copy, "unwritten"), "in memory still");
        assert_eq!(fs::read(copy.upper().join("big")).unwrap(), big);
        assert_eq!(fs::read_dir(copy.work()).unwrap().count(), 0);
    }
    assert_eq!(read(&disk, "file"), "after");

    // What is sealed cannot be written, not even by root, and is closed to others.
    let copy = dir.path().join("pool/saved/snapshot");
    let error = fs::write(copy.join("disk/upper/file"), "x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    for private in [dir.path().join("pool/saved"), copy] {
        let mode = fs::metadata(&private).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{private:?}");
    }

    // Each can go without the others.
    saved.destroy().await.unwrap();
    disk.destroy().await.unwrap();
    assert_eq!(read(&one, "file"), "of one");
    assert_eq!(fs::read(two.upper().join("big")).unwrap(), big);
    drop((one, two));
    until("nothing is left", || dir.disks().is_empty() && dir.qgroups() == 0).await;
    service.shutdown().await;
    assert!(!dir.mounted());
}

#[tokio::test]
async fn a_sandbox_that_rests_again_and_again_keeps_all_and_has_one_limit() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    limit_holds_over_rests(&service.handle()).await;
    until("no quota group is left", || dir.qgroups() == 0).await;
    service.shutdown().await;
}

/// A pool made where the kernel had no simple quotas keeps the full ones.
#[tokio::test]
async fn full_quotas_count_the_same() {
    let dir = DataDir::new();
    let (image, point) = (dir.path().join("pool.img"), dir.path().join("pool"));
    fs::File::create(&image).unwrap().set_len(1024 * MIB).unwrap();
    fs::create_dir(&point).unwrap();
    let run = |program: &str, arguments: &[&Path]| {
        let arguments = arguments.iter().flat_map(|path| path.to_str().unwrap().split(' '));
        assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
    };
    run("mkfs.btrfs", &["-q -m single".as_ref(), &image]);
    run("mount", &["-o loop".as_ref(), &image, &point]);
    run("btrfs", &["quota enable".as_ref(), &point]);
    run("umount", &[&point]);
    let service = dir.start(0).await;
    limit_holds_over_rests(&service.handle()).await;
    service.shutdown().await;
}

async fn limit_holds_over_rests(storage: &Handle) {
    let mut disk = storage.take_disk(100 * MIB).await.unwrap();
    fill(&disk.upper().join("first"), 40 * MIB).unwrap();
    for round in 0..20 {
        write(&disk, &format!("round{round}"), "kept");
        // What is written and deleted in every round must not add up.
        until("there is room for it", || fill(&disk.upper().join("passing"), 10 * MIB).is_ok())
            .await;
        disk = rest(storage, disk, 100 * MIB).await;
    }
    assert_eq!(disk.usage().await.unwrap().1, 100 * MIB);
    let shrink = async {
        while disk.usage().await.unwrap().0 > 55 * MIB {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(300), shrink).await.is_ok());
    assert!(disk.usage().await.unwrap().0 > 49 * MIB);
    let error = fill(&disk.upper().join("second"), 80 * MIB).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    // What an ancestor wrote makes room like anything else.
    for file in ["second", "first"] {
        fs::remove_file(disk.upper().join(file)).unwrap();
    }
    fs::File::open(disk.upper()).unwrap().sync_all().unwrap();
    let mut last = Ok(());
    until("there is room again", || {
        last = fill(&disk.upper().join("third"), 80 * MIB);
        last.is_ok()
    })
    .await;
    for round in 0..20 {
        assert_eq!(read(&disk, &format!("round{round}")), "kept");
    }
    disk.destroy().await.unwrap();
}

#[tokio::test]
async fn a_branch_cannot_outgrow_its_limit_while_its_source_lives() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let source = storage.take_disk(100 * MIB).await.unwrap();
    fill(&source.upper().join("base"), 20 * MIB).unwrap();
    let saved = storage.seal(&source, &build_id(1)).await.unwrap();
    let branch = storage.branch(&saved, 50 * MIB).await.unwrap();
    // The source's writes are none of the branch's business, nor the other way round.
    fill(&source.upper().join("more"), 60 * MIB).unwrap();
    fill(&branch.upper().join("own"), 25 * MIB).unwrap();
    let error = fill(&branch.upper().join("own"), 60 * MIB).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    fill(&source.upper().join("again"), 10 * MIB).unwrap();
    // No branch may have more than its share of the pool either.
    let (_, total) = storage.usage().unwrap();
    let greedy = storage.branch(&saved, 100 * total).await.unwrap();
    assert_eq!(greedy.usage().await.unwrap().1, total / 4);
    drop((source, branch, greedy));
    service.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_under_a_mounted_overlay_can_be_saved_mounted_again_and_cleared() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let mut disk = storage.take_disk(20 * MIB).await.unwrap();
    for round in 0..3 {
        let overlay = Overlay::new(&disk);
        if round == 0 {
            fs::remove_file(overlay.path("lower")).unwrap();
        }
        let error = fill(&overlay.path(&format!("big{round}")), 40 * MIB).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        let saved = storage.seal(&disk, "full").await.unwrap();
        drop(overlay);
        disk.destroy().await.unwrap();
        disk = storage.branch(&saved, 20 * MIB).await.unwrap();
        saved.destroy().await.unwrap();
    }
    let overlay = Overlay::new(&disk);
    assert!(!overlay.path("lower").exists(), "deleted before the first copy");
    for round in 0..3 {
        fs::remove_file(overlay.path(&format!("big{round}"))).unwrap();
    }
    until_used_is_below(&disk, 9 * MIB).await;
    fill(&overlay.path("new"), 10 * MIB).unwrap();
    drop(overlay);
    disk.destroy().await.unwrap();
    service.shutdown().await;
}

#[tokio::test]
async fn what_is_saved_and_kept_survives_a_crash_and_the_rest_goes() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(100 * MIB).await.unwrap();
    fill(&disk.upper().join("big"), 40 * MIB).unwrap();
    let memory = storage.begin_saved("kept", 0, 0).await.unwrap();
    fs::write(memory.join("pages"), "of memory").unwrap();
    storage.seal(&disk, "kept").await.unwrap();
    storage.seal(&disk, "unkept").await.unwrap();
    // Begun, and no more.
    storage.begin_saved("begun", 0, 0).await.unwrap();
    // As SIGKILL does it: nothing is dropped.
    std::mem::forget((disk, service));

    let service = dir.start_keeping(&["kept", "begun"]).await;
    let storage = service.handle();
    assert!(storage.saved("unkept").await.unwrap().is_none());
    assert!(!dir.path().join("pool/saved/unkept").exists());
    assert!(storage.saved("begun").await.unwrap().is_none());
    let saved = storage.saved("kept").await.unwrap().unwrap();
    assert_eq!(saved.name(), "kept");
    assert_eq!(fs::read(saved.memory_dir().join("pages")).unwrap(), b"of memory");
    let disk = storage.branch(&saved, 50 * MIB).await.unwrap();
    // What the first disk wrote counts, although that one is gone.
    assert!(disk.usage().await.unwrap().0 > 39 * MIB);
    let name = disk.name().to_owned();
    disk.leave();
    service.shutdown().await;

    // The branch's account survives as well.
    let service = dir.start_keeping(&[&name]).await;
    let storage = service.handle();
    assert!(storage.saved("kept").await.unwrap().is_none());
    let disk = storage.adopt_disk(&name).await.unwrap().unwrap();
    let (used, limit) = disk.usage().await.unwrap();
    assert!(used > 39 * MIB, "{used}");
    assert_eq!(limit, 50 * MIB);
    let error = fill(&disk.upper().join("more"), 20 * MIB).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    disk.destroy().await.unwrap();
    until("nothing is left", || dir.disks().is_empty() && dir.qgroups() == 0).await;
    service.shutdown().await;
}

#[tokio::test]
async fn what_is_incomplete_is_never_given_and_can_be_replaced_or_dropped() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(10 * MIB).await.unwrap();
    write(&disk, "file", "first");
    assert!(storage.saved("some").await.unwrap().is_none());
    let saved = storage.seal(&disk, "some").await.unwrap();
    let seal = dir.path().join("pool/saved/some/sealed");
    let whole = fs::read(&seal).unwrap();

    // Stopped before the seal.
    fs::remove_file(&seal).unwrap();
    assert!(storage.saved("some").await.unwrap().is_none());
    let error = storage.branch(&saved, MIB).await.unwrap_err();
    assert_eq!(error.code, codes::NOT_FOUND);
    write(&disk, "file", "second");
    let saved = storage.seal(&disk, "some").await.unwrap();
    let branch = storage.branch(&saved, 10 * MIB).await.unwrap();
    assert_eq!(read(&branch, "file"), "second");

    // Torn, altered, or of another copy.
    for damaged in [&whole[..0], &whole[..whole.len() / 2], &whole] {
        fs::write(&seal, damaged).unwrap();
        for error in [
            storage.saved("some").await.unwrap_err(),
            storage.branch(&saved, MIB).await.unwrap_err(),
        ] {
            assert_eq!(error.code, codes::LAYER_CORRUPT);
            assert!(error.message.contains("saved/some"), "{error}");
        }
    }
    storage.drop_saved("some").await.unwrap();
    assert!(storage.saved("some").await.unwrap().is_none());
    storage.drop_saved("some").await.unwrap();
    assert_eq!(fs::read_dir(dir.path().join("pool/saved")).unwrap().count(), 0);
    assert_eq!(read(&branch, "file"), "second");

    for bad in ["", "..", "a/b", "../disks", &"x".repeat(65)] {
        let error = storage.seal(&disk, bad).await.unwrap_err();
        assert_eq!(error.code, codes::INVALID_REQUEST);
        assert_eq!(storage.drop_saved(bad).await.unwrap_err().code, codes::INVALID_REQUEST);
    }
    drop((disk, branch));
    service.shutdown().await;
}

#[tokio::test]
async fn a_checkpoint_belongs_to_one_save_only() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(10 * MIB).await.unwrap();
    let memory = storage.begin_saved("some", 0, 0).await.unwrap();
    fs::write(memory.join("pages"), "first").unwrap();
    let saved = storage.seal(&disk, "some").await.unwrap();
    assert_eq!(fs::read(saved.memory_dir().join("pages")).unwrap(), b"first");
    let error = fs::write(memory.join("pages"), "x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    // Begun again, it is no longer what it was.
    let memory = storage.begin_saved("some", 0, 0).await.unwrap();
    assert!(storage.saved("some").await.unwrap().is_none());
    assert_eq!(fs::read_dir(&memory).unwrap().count(), 0);
    let saved = storage.seal(&disk, "some").await.unwrap();
    assert_eq!(fs::read_dir(saved.memory_dir()).unwrap().count(), 0);
    saved.destroy().await.unwrap();
    disk.destroy().await.unwrap();
    until("nothing is left", || dir.qgroups() == 0).await;
    service.shutdown().await;
}

#[tokio::test]
async fn a_seal_that_is_given_up_can_be_dropped_at_once() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(50 * MIB).await.unwrap();
    fill(&disk.upper().join("file"), 20 * MIB).unwrap();
    for _ in 0..10 {
        write(&disk, "other", "unwritten");
        let mut seal = Box::pin(storage.seal(&disk, "some"));
        // Polled once, so that the work is under way; then dropped, with its result if it has one.
        std::future::poll_fn(|context| {
            drop(seal.as_mut().poll(context));
            std::task::Poll::Ready(())
        })
        .await;
        drop(seal);
        storage.drop_saved("some").await.unwrap();
    }
    // Whichever came first, work on a name is never mixed: it is there whole, or not at all.
    until("the last has ended", || {
        let saved = dir.path().join("pool/saved/some");
        !saved.exists() || saved.join("sealed").exists()
    })
    .await;
    storage.drop_saved("some").await.unwrap();
    assert!(!dir.path().join("pool/saved/some").exists());
    disk.destroy().await.unwrap();
    until("nothing is left", || dir.disks().is_empty() && dir.qgroups() == 0).await;
    service.shutdown().await;
}

#[tokio::test]
async fn a_full_pool_is_said_to_be_full_and_nothing_is_half_saved() {
    let dir = DataDir::new();
    let options = Options { pool_bytes: Some(256 * MIB), ..dir.options(0) };
    let service = Service::start(options).await.unwrap();
    let storage = service.handle();
    let disk = storage.take_disk(50 * MIB).await.unwrap();
    write(&disk, "file", "precious");
    // Nothing fills it but what has no limit.
    storage.begin_saved("some", 0, 0).await.unwrap();
    let memory = dir.path().join("pool/saved/some");
    // First the room for data, then that for what describes it.
    let error = fill(&memory.join("pages"), 2048 * MIB).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let small = (0..).map(|number| fs::write(memory.join(format!("{number}")), [0; 2000]));
    let error = small.map_while(|written| Some(written.err())).flatten().next().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);

    let mut failed = None;
    for number in 0..1000 {
        if let Err(error) = storage.seal(&disk, &format!("copy{number}")).await {
            failed = Some((number, error));
            break;
        }
    }
    let (number, error) = failed.unwrap();
    assert_eq!(error.code, codes::DISK_FULL, "{error}");
    assert!(storage.saved(&format!("copy{number}")).await.unwrap().is_none());
    assert_eq!(read(&disk, "file"), "precious");
    // Room is made by dropping what is incomplete, seconds later.
    storage.drop_saved("some").await.unwrap();
    let seal = async {
        while let Err(error) = storage.seal(&disk, "some").await {
            assert_eq!(error.code, codes::DISK_FULL, "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(300), seal).await.is_ok());
    disk.destroy().await.unwrap();
    service.shutdown().await;
}
