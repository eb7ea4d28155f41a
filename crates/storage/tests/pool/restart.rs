//! What outlives the program: disks that somebody still owns.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use atoll_core::lifecycle::Kept;
use atoll_storage::{BuildManifest, Options, Service};

use crate::{DataDir, MIB, build_id, fill, manifest, small_layer, until};

/// Where the predecessor works.
const DATA_DIR: &str = "ATOLL_TEST_PREDECESSOR";

/// A process that has a pool and disks in it. Says their names, one a line, and waits to be killed.
#[tokio::test]
#[ignore = "the process that other tests kill"]
async fn predecessor() {
    let Some(dir) = std::env::var_os(DATA_DIR) else { return };
    let options = Options {
        data_dir: PathBuf::from(dir),
        pool_bytes: Some(1024 * MIB),
        disks: 2,
        keep: Default::default(),
    };
    let service = Service::start(options).await.unwrap();
    let storage = service.handle();
    for number in 0..2 {
        let disk = storage.take_disk((50 + number) * MIB).await.unwrap();
        fs::write(disk.upper().join("file"), format!("of {number}")).unwrap();
        println!("disk {}", disk.name());
        std::mem::forget(disk);
    }
    println!("done");
    std::future::pending::<()>().await;
}

/// A process that copies, stores and deletes builds, saying so, until it is killed.
#[tokio::test]
#[ignore = "the process that other tests kill"]
async fn busy_predecessor() {
    let Some(dir) = std::env::var_os(DATA_DIR) else { return };
    let options = Options {
        data_dir: PathBuf::from(dir),
        pool_bytes: Some(1024 * MIB),
        disks: 0,
        keep: ["own".to_owned()].into(),
    };
    let service = Service::start(options).await.unwrap();
    let storage = service.handle();
    storage.sweep().await.unwrap();
    let own = match storage.saved("own").await.unwrap() {
        Some(own) => own,
        None => {
            let disk = storage.take_disk(20 * MIB).await.unwrap();
            fs::write(disk.upper().join("file"), "content").unwrap();
            let memory = storage.begin_saved("own", MIB, MIB).await.unwrap();
            fs::write(memory.join("pages"), [7; 100_000]).unwrap();
            storage.seal(&disk, "own").await.unwrap()
        }
    };
    for round in 0.. {
        let layer = small_layer(&storage).await;
        let (id, snapshot) = (build_id(round % 4), Some(Kept::Checkpoint));
        let (now, other) = (storage.delete_build(&id), storage.copy_saved(&own, "other"));
        let (deleted, copied) = tokio::join!(now, other);
        deleted.unwrap();
        println!("deleted {id}");
        storage.copy_saved(&copied.unwrap(), &id).await.unwrap();
        storage
            .put_build(&BuildManifest { snapshot, ..manifest(round % 4, &[layer]) })
            .await
            .unwrap();
        println!("put {id}");
    }
}

#[tokio::test]
async fn a_build_is_whole_or_gone_whenever_the_program_is_killed() {
    let dir = DataDir::new();
    let mut known = BTreeSet::new();
    for lines in [1, 2, 3, 7, 10, 12, 17, 25] {
        let mut child = spawn("restart::busy_predecessor", dir.path());
        let said = BufReader::new(child.stdout.take().unwrap()).lines().map(io::Result::unwrap);
        let said = said.filter(|line| line.contains("deleted ") || line.contains("put "));
        let mut said = said.inspect(|line| {
            let (what, id) = line.rsplit_once(' ').unwrap();
            if what.ends_with("put") {
                known.insert(id.to_owned())
            } else {
                known.remove(id)
            };
        });
        said.by_ref().take(lines).for_each(drop);
        child.kill().unwrap();
        // What it had said by then.
        said.for_each(drop);
        child.wait().unwrap();

        let service = dir.start_keeping(&["own", "other"]).await;
        let storage = service.handle();
        let mut saved = vec![storage.saved("own").await.unwrap().unwrap()];
        saved.extend(storage.saved("other").await.unwrap());
        let builds = storage.builds().await;
        for build in &builds {
            assert_eq!(storage.build(&build.id).await.unwrap().as_ref(), Some(build));
            saved.push(storage.saved(&build.id).await.unwrap().unwrap());
        }
        for saved in &saved {
            assert_eq!(fs::read(saved.memory_dir().join("pages")).unwrap(), [7; 100_000]);
            let disk = storage.branch(saved, 20 * MIB).await.unwrap();
            assert_eq!(fs::read(disk.upper().join("file")).unwrap(), b"content");
            disk.destroy().await.unwrap();
        }
        // Each but the one that it was at work on is as it said.
        let found: BTreeSet<String> = builds.iter().map(|build| build.id.clone()).collect();
        let unsaid = found.symmetric_difference(&known).count();
        assert!(unsaid <= 1, "said {known:?}, found {found:?}");
        known = found;
        storage.sweep().await.unwrap();
        let layers = builds.iter().map(|build| build.layers[0].to_string());
        assert_eq!(dir.layers(), layers.collect());
        service.shutdown().await;
    }
}

fn spawn(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env(DATA_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs it until it has its disks, and kills it as hard as can be; gives the names.
fn killed_predecessor(dir: &Path) -> Vec<String> {
    let mut child = spawn("restart::predecessor", dir);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(io::Result::unwrap);
    let said: Vec<String> = lines.take_while(|line| line != "done").collect();
    child.kill().unwrap();
    child.wait().unwrap();
    said.iter().filter_map(|line| Some(line.split_once("disk ")?.1.to_owned())).collect()
}

#[tokio::test]
async fn a_disk_that_is_kept_survives_sigkill_with_content_and_limit_and_others_go() {
    let dir = DataDir::new();
    let names = killed_predecessor(dir.path());
    assert_eq!(names.len(), 2);
    assert!(dir.mounted());
    assert!(dir.disks().len() >= 2);

    let service = dir.start_keeping(&[&names[1], "one-that-never-was"]).await;
    let storage = service.handle();
    assert_eq!(dir.disks(), [dir.path().join("pool/disks").join(&names[1])]);
    until("the others' quota groups are gone", || dir.qgroups() == 1).await;
    for absent in [&*names[0], "one-that-never-was", "../disks", ""] {
        assert!(storage.adopt_disk(absent).await.unwrap().is_none(), "{absent}");
    }

    let disk = storage.adopt_disk(&names[1]).await.unwrap().unwrap();
    assert_eq!(disk.name(), names[1]);
    assert!(storage.adopt_disk(&names[1]).await.unwrap().is_none(), "somebody has it");
    assert_eq!(fs::read_to_string(disk.upper().join("file")).unwrap(), "of 1");
    assert_eq!(disk.usage().await.unwrap().1, 51 * MIB);
    let error = fill(&disk.upper().join("big"), 60 * MIB).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);

    disk.destroy().await.unwrap();
    until("nothing is left", || dir.disks().is_empty() && dir.qgroups() == 0).await;
    service.shutdown().await;
    assert!(!dir.mounted());
}

#[tokio::test]
async fn a_disk_that_is_left_waits_for_its_owner_in_this_run_and_the_next() {
    let dir = DataDir::new();
    let service = dir.start(1).await;
    let storage = service.handle();
    let disk = storage.take_disk(10 * MIB).await.unwrap();
    let name = disk.name().to_owned();
    fs::write(disk.upper().join("file"), "x").unwrap();
    disk.leave();
    let disk = storage.adopt_disk(&name).await.unwrap().unwrap();
    assert!(storage.adopt_disk(&name).await.unwrap().is_none());
    disk.leave();
    service.shutdown().await;
    assert!(!dir.mounted());

    let service = dir.start_keeping(&[&name]).await;
    let disk = service.handle().adopt_disk(&name).await.unwrap().unwrap();
    assert_eq!(fs::read(disk.upper().join("file")).unwrap(), b"x");
    assert_eq!(disk.usage().await.unwrap().1, 10 * MIB);
    // Dropped, not left: it is deleted after all.
    drop(disk);
    until("it is gone", || dir.disks().is_empty()).await;
    service.shutdown().await;
}

#[tokio::test]
async fn no_two_disks_have_one_name_whichever_run_made_them() {
    let dir = DataDir::new();
    let mut names = Vec::new();
    for run in 0..3 {
        let keep: Vec<&str> = names.iter().map(String::as_str).collect();
        let service = dir.start_keeping(&keep).await;
        for _ in 0..3 {
            let disk = service.handle().take_disk(MIB).await.unwrap();
            names.push(disk.name().to_owned());
            // Some live, some do not.
            if run == 1 { disk.destroy().await.unwrap() } else { disk.leave() }
        }
        service.shutdown().await;
    }
    let mut unique = names.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 9);
}
