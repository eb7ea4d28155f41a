//! Checkpoints for real: the driver dumps sandboxes, and their processes go on in other slots.
//!
//! Needs root, and CRIU: `ATOLL_CRIU=$(scripts/criu.sh)` names a tree that has it; otherwise the
//! host's own is used. Without a usable one these tests say so and pass.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

mod envd;
mod hostile;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::{Read, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use atoll_core::{error::codes, lifecycle::Kept};
use atoll_isolation::{Driver, Limits, Running, checkpoint::connections};
use tokio_util::sync::CancellationToken;
use world::{LIMITS, Namespaces, World, end, until};

/// Counts, and keeps a file open that has no name any more.
const COUNTER: [&str; 3] = [
    "/bin/sh",
    "-c",
    "exec 7>/gone; echo kept >&7; exec 8</gone; rm /gone
i=0
while :; do i=$((i+1)); echo $i >/new; mv /new /counter; sleep 0.02; done",
];

fn counted(disk: &Path) -> u64 {
    let text = fs::read_to_string(disk.join("upper/counter")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

async fn counts_past(disk: &Path, number: u64) -> u64 {
    until("it counts on", || Some(counted(disk)).filter(|now| *now > number)).await
}

/// What the process has in the file without a name.
fn nameless(running: &Running) -> String {
    fs::read_to_string(format!("/proc/{}/fd/8", running.process.pid())).unwrap()
}

fn names_in(directory: &Path) -> BTreeSet<OsString> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

async fn frozen_counter(world: &World, slot: &Namespaces) -> Running {
    let running = world.start(slot, "disk", &COUNTER, "").await;
    counts_past(&world.at("disk"), 3).await;
    world.driver.freeze(&running).await.unwrap();
    running
}

#[tokio::test]
async fn processes_go_on_in_other_slots_from_where_they_were() {
    let Some(world) = World::new(0).await else { return };
    assert_eq!(world.driver.memory(), Kept::Checkpoint);
    assert!(world.groups().is_empty(), "the probe left something");
    let slot = Namespaces::new(1);
    let source = frozen_counter(&world, &slot).await;

    let (boot, mounts) = (hostile::boot_id(&source), hostile::mounts(&source));
    let images = world.make("images");
    let dumped = world.driver.dump(&source, &images).await.unwrap();
    world.copy("disk", "saved");
    let before = counted(&world.at("saved"));
    assert_eq!(counted(&world.at("disk")), before, "it went on while it was held");
    let complete = names_in(&images);
    dumped.release().await.unwrap();
    assert_eq!(names_in(&images), complete, "written after it was complete");
    assert_eq!(counted(&world.at("disk")), before, "it went on when it was released");
    world.driver.thaw(&source).await.unwrap();
    counts_past(&world.at("disk"), before).await;
    end(source).await;

    // Two at once, from the same images.
    let slots = [2, 3].map(Namespaces::new);
    let names = ["first", "second"];
    let restores = names.iter().zip(&slots).map(|(name, slot)| {
        let disk = world.copy("saved", name);
        let work = world.make(&format!("work-{name}"));
        let limits = Limits { memory: 128 << 20, ..LIMITS };
        let spec = atoll_isolation::Spec { limits, ..world.spec(slot, &disk) };
        let (driver, images) = (&world.driver, &images);
        async move { driver.restore(spec, images, &work, &unending()).await.unwrap() }
    });
    let restored = futures::future::join_all(restores).await;
    for ((running, name), slot) in restored.iter().zip(names).zip(&slots) {
        let now = counts_past(&world.at(name), before).await;
        assert!(now < before + 10_000, "{now} is not a continuation of {before}");
        assert_eq!(nameless(running), "kept\n");
        assert_eq!(hostile::boot_id(running), boot);
        assert_eq!(hostile::mounts(running), mounts);
        let process = Path::new("/proc").join(running.process.pid().to_string());
        let status = fs::read_to_string(process.join("status")).unwrap();
        let uid = slot.place().first_uid;
        assert!(status.contains(&format!("Uid:\t{uid}\t{uid}")), "{status}");
        assert!(status.contains("Seccomp:\t2"), "{status}");
        // Hidden by a directory of the host's root, whom nobody in the sandbox is.
        for hidden in ["fs", "irq"] {
            let hidden = process.join("root/proc").join(hidden);
            let metadata = fs::metadata(&hidden).unwrap();
            assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o555), "{hidden:?}");
            assert_eq!(fs::read_dir(&hidden).unwrap().count(), 0, "{hidden:?}");
        }
        // Like one that was started: users' processes apart, limited, and known to the driver.
        let group = running.identity().cgroup;
        let groups = fs::read_to_string(process.join("cgroup")).unwrap();
        assert!(groups.contains(&format!("/{group}/user\n")), "{groups}");
        running.cgroup.set_apart(running.process.pid()).unwrap();
        let groups = fs::read_to_string(process.join("cgroup")).unwrap();
        assert!(groups.contains(&format!("/{group}/envd\n")), "{groups}");
        // And dumped like one, from both groups.
        world.driver.freeze(running).await.unwrap();
        let again = world.make(&format!("again-{name}"));
        world.driver.dump(running, &again).await.unwrap().release().await.unwrap();
        let stopped = counted(&world.at(name));
        world.driver.thaw(running).await.unwrap();
        counts_past(&world.at(name), stopped).await;
    }
    for running in restored {
        end(running).await;
    }
    assert!(world.groups().is_empty());
}

#[tokio::test]
async fn a_dump_that_nobody_wants_any_more_leaves_the_processes_frozen() {
    let Some(mut world) = World::new(10).await else { return };
    let slot = Namespaces::new(11);
    let running = frozen_counter(&world, &slot).await;
    let images = world.make("images");
    let dumped = world.driver.dump(&running, &images).await.unwrap();
    drop(dumped);
    // What starts now finds the dump, and waits for its end.
    world.restart(&[&running]).await;
    let adopted = world.driver.adopt(&running.identity()).await.unwrap().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", adopted.process.pid())).unwrap();
    assert!(status.contains("TracerPid:\t0"), "{status}");
    let before = counted(&world.at("disk"));
    world.driver.thaw(&adopted).await.unwrap();
    counts_past(&world.at("disk"), before).await;
    end(running).await;
}

#[tokio::test]
async fn one_that_is_killed_while_it_is_held_is_gone() {
    let Some(world) = World::new(20).await else { return };
    let slot = Namespaces::new(21);
    let running = frozen_counter(&world, &slot).await;
    let images = world.make("images");
    let dumped = world.driver.dump(&running, &images).await.unwrap();
    running.kill().unwrap();
    dumped.release().await.unwrap();
    running.process.wait().await.unwrap();
    let error = world.driver.dump(&running, &world.make("none")).await.unwrap_err();
    assert_eq!(error.code, codes::SANDBOX_GONE);
    running.cgroup.remove().await.unwrap();
}

#[tokio::test]
async fn a_restore_that_fails_leaves_nothing() {
    let Some(world) = World::new(30).await else { return };
    let slot = Namespaces::new(31);
    let running = frozen_counter(&world, &slot).await;
    let images = world.make("images");
    let dumped = world.driver.dump(&running, &images).await.unwrap();
    world.copy("disk", "saved");
    running.kill().unwrap();
    dumped.release().await.unwrap();
    end(running).await;

    // The file that the process has open is not on this disk, which CRIU notices at the end.
    let disk = world.disk("empty");
    let (spec, work) = (world.spec(&slot, &disk), world.make("w1"));
    let error = world.driver.restore(spec, &images, &work, &unending()).await.unwrap_err();
    assert_eq!(error.code, codes::CHECKPOINT_FAILED);
    assert!(world.groups().is_empty(), "{error}");
    let uid = slot.place().first_uid;
    until("it is reaped", || children_of_slot(uid).is_empty().then_some(())).await;

    // One that is given up, or that nobody waits for any more, at some moment in its middle.
    let moments =
        [0, 1, 5, 20, 40].into_iter().flat_map(|patience| [(patience, true), (patience, false)]);
    for (number, (patience, is_told)) in moments.enumerate() {
        let disk = world.copy("saved", &format!("disk-{number}"));
        let work = world.make(&format!("work-{number}"));
        let given_up = unending();
        let mut restore = world.driver.restore(world.spec(&slot, &disk), &images, &work, &given_up);
        let patience = std::time::Duration::from_millis(patience);
        let mut restored = tokio::time::timeout(patience, &mut restore).await.ok();
        if restored.is_none() && is_told {
            given_up.cancel();
            restored = Some((&mut restore).await);
        }
        drop(restore);
        let uid = slot.place().first_uid;
        match restored {
            Some(Ok(restored)) => end(restored).await,
            Some(Err(error)) => {
                assert_eq!(error.code, codes::CHECKPOINT_FAILED);
                assert!(world.groups().is_empty(), "it is answered before it is undone");
            }
            None => {}
        }
        until("it is removed", || world.groups().is_empty().then_some(())).await;
        until("it is reaped", || children_of_slot(uid).is_empty().then_some(())).await;
    }
    // The checkpoint is as good as before.
    let disk = world.copy("saved", "disk-last");
    let work = world.make("work-last");
    let restored =
        world.driver.restore(world.spec(&slot, &disk), &images, &work, &unending()).await.unwrap();
    counts_past(&disk, counted(&world.at("saved"))).await;
    end(restored).await;
}

/// For a restore that is not given up.
fn unending() -> CancellationToken {
    CancellationToken::new()
}

/// Processes, ended ones too, with this id.
fn children_of_slot(uid: u32) -> Vec<u32> {
    let has_uid = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&format!("Uid:\t{uid}\t"))
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has_uid).collect()
}

#[tokio::test]
async fn connections_that_the_host_opened_into_a_slot_are_closed_and_others_stay() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make namespaces");
        return;
    }
    let slot = Namespaces::new(40);
    // Within the slot, but as root of the host, which no sandbox is.
    let listener = slot.inside(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let connect = move || std::net::TcpStream::connect(address).unwrap();
    let mut client = slot.inside(connect);
    let (mut server, _) = listener.accept().unwrap();
    // As if the sandbox's ids began at the host's root: both ends are its own.
    assert_eq!(connections::close(slot.net.as_fd(), 0).await.unwrap(), 0);
    client.write_all(b"open").unwrap();
    server.read_exact(&mut [0; 4]).unwrap();
    assert!(connections::close(slot.net.as_fd(), slot.place().first_uid).await.unwrap() > 0);
    server.read_exact(&mut [0]).unwrap_err();
    client.read_exact(&mut [0]).unwrap_err();
    // A listening socket is left alone.
    slot.inside(connect);
}
