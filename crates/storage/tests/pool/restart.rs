//! What outlives the program: disks that somebody still owns.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use atoll_storage::{Options, Service};

use crate::{DataDir, MIB, fill, until};

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

/// Runs it until it has its disks, and kills it as hard as can be; gives the names.
fn killed_predecessor(dir: &Path) -> Vec<String> {
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["restart::predecessor", "--exact", "--ignored", "--nocapture"])
        .env(DATA_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
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
