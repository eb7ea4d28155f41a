//! What a sandbox, or a CRIU that fails, must not be able to do.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use atoll_core::error::codes;
use atoll_isolation::{Driver, Running};

use crate::{
    counted, counts_past, frozen_counter, names_in, unending,
    world::{DEADLINE, LIMITS, Namespaces, World, end, until},
};

/// What a sandbox sees of the file.
pub(crate) fn boot_id(running: &Running) -> String {
    let root = PathBuf::from(format!("/proc/{}/root", running.process.pid()));
    fs::read_to_string(root.join("proc/sys/kernel/random/boot_id")).unwrap()
}

/// A sandbox's mount points, with what may be done there.
pub(crate) fn mounts(running: &Running) -> Vec<(String, String)> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", running.process.pid())).unwrap();
    let mut mounts: Vec<(String, String)> = table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .map(|fields| (fields[4].to_owned(), fields[5].to_owned()))
        .collect();
    mounts.sort();
    mounts
}

/// The processes of the one group that is not the sandbox's.
fn dumping(world: &World, running: &Running) -> Vec<u32> {
    let groups = world.driver.cgroups().existing();
    let other = groups.into_iter().filter(|(name, _)| name != running.cgroup.name());
    other.flat_map(|(_, group)| group.processes()).collect()
}

#[tokio::test]
async fn what_dumps_is_limited_and_has_no_file_of_the_host() {
    let Some(world) = World::new(60).await else { return };
    let slot = Namespaces::new(61);
    let running = frozen_counter(&world, &slot).await;
    let images = world.make("images");
    let dumped = world.driver.dump(&running, &images).await.unwrap();
    assert!(dumped.still_holds());
    let dumping = dumping(&world, &running);
    assert!(!dumping.is_empty());
    for pid in &dumping {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let known = [
            "bin", "dev", "freezer", "images", "lib", "lib32", "lib64", "proc", "sbin", "sh", "usr",
        ];
        for name in names_in(&process.join("root")) {
            let name = name.to_str().unwrap();
            assert!(known.contains(&name) || name.starts_with("stats-"), "{name:?}");
        }
        let groups = fs::read_to_string(process.join("cgroup")).unwrap();
        assert!(!groups.contains(running.cgroup.name()), "{groups}");
    }
    // One that is gone holds nothing.
    let killed = Command::new("kill").arg("-9").args(dumping.iter().map(u32::to_string)).status();
    assert!(killed.unwrap().success());
    until("CRIU is gone", || (!dumped.still_holds()).then_some(())).await;
    running.kill().unwrap();
    dumped.release().await.unwrap();
    end(running).await;
    assert!(world.groups().is_empty());
}

#[tokio::test]
async fn a_dump_that_is_given_up_in_its_middle_harms_nobody() {
    let Some(world) = World::new(70).await else { return };
    let slot = Namespaces::new(71);
    let running = frozen_counter(&world, &slot).await;
    let disk = world.at("disk");
    for patience in [0, 1, 5, 10, 20, 40, 60, 80] {
        let images = world.make(&format!("images-{patience}"));
        let dump = world.driver.dump(&running, &images);
        // Held, or not yet: nobody wants it.
        drop(tokio::time::timeout(Duration::from_millis(patience), dump).await);
        let group = [running.cgroup.name().to_owned()];
        until("it has let go", || (world.groups() == group).then_some(())).await;
        let status = fs::read_to_string(format!("/proc/{}/status", running.process.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0"), "{status}");
        world.driver.thaw(&running).await.unwrap();
        counts_past(&disk, counted(&disk)).await;
        world.driver.freeze(&running).await.unwrap();
    }
    let images = world.make("images");
    world.driver.dump(&running, &images).await.unwrap().release().await.unwrap();
    end(running).await;
}

#[tokio::test]
async fn a_link_to_what_only_criu_has_leads_nowhere() {
    let Some(world) = World::new(80).await else { return };
    let slot = Namespaces::new(81);
    // The file without a name is to be made again where its directory was: a link by then, to the
    // disk that is below the overlay.
    let script = "mkdir -p /a/b; echo kept >/a/b/gone; exec 8</a/b/gone; rm /a/b/gone; rmdir /a/b
ln -s /disk /a/b; echo 1 >/counter; while :; do sleep 1000; done";
    let running = world.start(&slot, "disk", &["/bin/sh", "-c", script], "").await;
    counts_past(&world.at("disk"), 0).await;
    world.driver.freeze(&running).await.unwrap();
    let images = world.make("images");
    let dumped = match world.driver.dump(&running, &images).await {
        Ok(dumped) => dumped,
        // As good: it is not followed at all.
        Err(error) => {
            assert_eq!(error.code, codes::CHECKPOINT_FAILED);
            return end(running).await;
        }
    };
    let disk = world.copy("disk", "saved");
    running.kill().unwrap();
    dumped.release().await.unwrap();
    end(running).await;
    let before = (names_in(&disk), fs::metadata(&disk).unwrap().modified().unwrap());
    let work = world.make("work");
    let restored =
        world.driver.restore(world.spec(&slot, &disk), &images, &work, &unending()).await;
    // Not even for a moment was there anything else.
    assert_eq!((names_in(&disk), fs::metadata(&disk).unwrap().modified().unwrap()), before);
    if let Ok(restored) = restored {
        end(restored).await;
    }
}

#[tokio::test]
async fn nobody_delays_a_start_by_looking_like_a_dump() {
    let Some(mut world) = World::new(90).await else { return };
    let mut idle = Command::new("sh")
        .args(["-c", "read line"])
        .arg(world.at("staging"))
        .arg(world.at("staging/images"))
        .uid(LIMITS.processes)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let restarted = tokio::time::timeout(DEADLINE, world.restart(&[])).await;
    idle.kill().unwrap();
    idle.wait().unwrap();
    assert!(restarted.is_ok());
}

#[tokio::test]
async fn a_sandbox_has_a_boot_of_its_own_which_it_cannot_change() {
    let Some(world) = World::new(100).await else { return };
    let path = "/proc/sys/kernel/random/boot_id";
    let script = format!("echo x >{path}; echo 1 >/counter; while :; do sleep 1000; done");
    let mut ids = vec![fs::read_to_string(Path::new(path)).unwrap()];
    for number in 101..103 {
        let slot = Namespaces::new(number);
        let disk = format!("disk-{number}");
        let running = world.start(&slot, &disk, &["/bin/sh", "-c", &script], "").await;
        counts_past(&world.at(&disk), 0).await;
        let id = boot_id(&running);
        assert!(id.len() == 37 && !ids.contains(&id), "{id:?} after {ids:?}");
        ids.push(id);
        end(running).await;
    }
}

#[tokio::test]
async fn processes_that_fork_all_the_time_are_dumped_all_the_same() {
    let Some(world) = World::new(110).await else { return };
    let slot = Namespaces::new(111);
    // The shell starts programs by vfork(2); many at once make each slow.
    let script = "for i in 1 2 3 4 5 6; do while :; do /bin/rm -f /none; done & done
echo 1 >/counter; while :; do sleep 1000; done";
    let running = world.start(&slot, "disk", &["/bin/sh", "-c", script], "").await;
    counts_past(&world.at("disk"), 0).await;
    let mut failed = 0;
    for round in 0..10 {
        world.driver.freeze(&running).await.unwrap();
        let images = world.make(&format!("images-{round}"));
        match world.driver.dump(&running, &images).await {
            Ok(dumped) => dumped.release().await.unwrap(),
            Err(_) => failed += 1,
        }
        world.driver.thaw(&running).await.unwrap();
    }
    // On a busy host CRIU still meets one now and then.
    assert!(failed <= 5, "{failed}");
    end(running).await;
}
