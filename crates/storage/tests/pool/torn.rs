//! What was torn or altered on disk: noticed, never served, and possible to delete.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use atoll_core::{Error, LayerId, error::codes, lifecycle::Kept};
use atoll_storage::{BuildManifest, Handle};

use crate::{DataDir, MIB, build_id, fill, layer, manifest, small_layer, until};

fn assert_corrupt(error: &Error, fix: &str) {
    assert_eq!(error.code, codes::LAYER_CORRUPT, "{error}");
    assert!(error.fix.contains(fix), "{error:?}");
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// Two builds of a layer each, with their digests.
async fn two_builds(dir: &DataDir) -> [LayerId; 2] {
    let service = dir.start(0).await;
    let storage = service.handle();
    let layers = [small_layer(&storage).await, small_layer(&storage).await];
    for (number, layer) in layers.iter().enumerate() {
        storage.put_build(&manifest(number as u32, std::slice::from_ref(layer))).await.unwrap();
        let digest = layer_file(dir, layer, "digest");
        until("its digest is there", || digest.exists()).await;
    }
    service.shutdown().await;
    layers
}

fn layer_file(dir: &DataDir, id: &LayerId, name: &str) -> PathBuf {
    dir.path().join("layers").join(id.as_str()).join(name)
}

/// The first build is refused and can be deleted, with its layer; the second one is as it was.
async fn only_the_first_is_refused(dir: &DataDir, layers: &[LayerId; 2]) {
    let service = dir.start(0).await;
    let storage = service.handle();
    assert_corrupt(&storage.build(&build_id(0)).await.unwrap_err(), "Delete the template");
    assert!(storage.build(&build_id(1)).await.unwrap().is_some());
    storage.lease(&layers[1..]).await.unwrap();
    assert!(storage.delete_build(&build_id(0)).await.unwrap());
    assert!(storage.build(&build_id(0)).await.unwrap().is_none());
    storage.sweep().await.unwrap();
    assert_eq!(dir.layers(), [layers[1].to_string()].into());
    service.shutdown().await;
}

#[tokio::test]
async fn a_manifest_that_is_torn_is_refused_and_what_it_may_need_stays() {
    for damage in [b"".as_slice(), b"{", b"atoll-build 1 00\n{}\n", &[0; 500]] {
        let dir = DataDir::new();
        let layers = two_builds(&dir).await;
        fs::write(dir.path().join(format!("builds/{}.json", build_id(0))), damage).unwrap();
        let service = dir.start(0).await;
        let listed = service.handle().builds().await;
        assert_eq!(listed.iter().map(|build| &*build.id).collect::<Vec<_>>(), [build_id(1)]);
        assert!(service.handle().sweep().await.unwrap().is_empty());
        assert_eq!(dir.layers().len(), 2);
        service.shutdown().await;
        only_the_first_is_refused(&dir, &layers).await;
    }
}

#[tokio::test]
async fn a_manifest_under_anothers_name_is_refused() {
    let dir = DataDir::new();
    let layers = two_builds(&dir).await;
    let file = |number| dir.path().join(format!("builds/{}.json", build_id(number)));
    fs::copy(file(1), file(0)).unwrap();
    only_the_first_is_refused(&dir, &layers).await;
}

#[tokio::test]
async fn a_layer_whose_description_is_torn_is_refused() {
    let dir = DataDir::new();
    let layers = two_builds(&dir).await;
    let path = layer_file(&dir, &layers[0], "layer.json");
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() - 3]).unwrap();
    let service = dir.start(0).await;
    let error = service.handle().lease(&layers[..1]).await.unwrap_err();
    assert_corrupt(&error, "Delete the template");
    service.shutdown().await;
    only_the_first_is_refused(&dir, &layers).await;
}

#[tokio::test]
async fn a_layer_that_is_incomplete_is_refused_at_once() {
    let dir = DataDir::new();
    let layers = two_builds(&dir).await;
    // The machine stopped before its digest was there, and its file is empty afterwards.
    fs::remove_file(layer_file(&dir, &layers[0], "digest")).unwrap();
    File::create(layer_file(&dir, &layers[0], "fs/file")).unwrap();
    for _ in 0..2 {
        let service = dir.start(0).await;
        let error = service.handle().build(&build_id(0)).await.unwrap_err();
        assert_corrupt(&error, "Delete the template");
        service.shutdown().await;
    }
    only_the_first_is_refused(&dir, &layers).await;
}

#[tokio::test]
async fn a_layer_that_was_altered_is_found_after_the_machine_stopped() {
    let dir = DataDir::new();
    let layers = two_builds(&dir).await;
    flip(&layer_file(&dir, &layers[0], "fs/file"), 3);
    // What another boot of the machine would have left.
    let boot = dir.path().join("layers/boot");
    assert!(!boot.exists(), "the last end was a proper one");
    fs::write(&boot, "another\n").unwrap();
    let service = dir.start(0).await;
    let storage = service.handle();
    let refused = async {
        while storage.build(&build_id(0)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(std::time::Duration::from_secs(300), refused).await.is_ok());
    // Not forgotten at the next start, also when all is read by then.
    until("all is read", || fs::read_to_string(&boot).unwrap() != "another\n").await;
    service.shutdown().await;
    assert!(!boot.exists());
    only_the_first_is_refused(&dir, &layers).await;
}

#[tokio::test]
async fn what_the_first_versions_wrote_is_taken_over_once() {
    let dir = DataDir::new();
    let layers = two_builds(&dir).await;
    let build = dir.path().join(format!("builds/{}.json", build_id(0)));
    for path in [build.clone(), layer_file(&dir, &layers[0], "layer.json")] {
        let text = fs::read_to_string(&path).unwrap();
        let mut bare: serde_json::Value =
            serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
        let fields = bare.as_object_mut().unwrap();
        for new in ["size", "snapshot", "stack", "control_secret"] {
            fields.remove(new);
        }
        fs::write(&path, bare.to_string()).unwrap();
    }
    let service = dir.start(0).await;
    let found = service.handle().build(&build_id(0)).await.unwrap().unwrap();
    assert_eq!(found.layers, layers[..1]);
    service.shutdown().await;
    // It has a checksum now.
    let text = fs::read(&build).unwrap();
    flip(&build, text.len() as u64 - 10);
    only_the_first_is_refused(&dir, &layers).await;
}

/// A snapshot with a checkpoint of 4 MiB; gives where that is.
async fn snapshot(storage: &Handle) -> PathBuf {
    let disk = storage.take_disk(20 * MIB).await.unwrap();
    let memory = storage.begin_saved(&build_id(1), 10 * MIB, 10 * MIB).await.unwrap();
    let pages = memory.join("pages-1.img");
    fill(&pages, 4 * MIB).unwrap();
    fs::write(memory.join("core-1.img"), [7; 3000]).unwrap();
    storage.seal(&disk, &build_id(1)).await.unwrap();
    let layer = storage.new_layer().await.unwrap().commit(layer("empty")).await.unwrap();
    let manifest = BuildManifest { snapshot: Some(Kept::Checkpoint), ..manifest(1, &[layer]) };
    storage.put_build(&manifest).await.unwrap();
    assert!(storage.build(&build_id(1)).await.unwrap().is_some());
    disk.destroy().await.unwrap();
    pages
}

#[tokio::test]
async fn a_snapshot_of_which_something_is_missing_is_refused() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("shorter", |pages| {
            OpenOptions::new().write(true).open(pages).unwrap().set_len(MIB).unwrap();
        }),
        ("gone", |pages| fs::remove_file(pages).unwrap()),
        ("another", |pages| fs::write(pages.with_file_name("stray"), "x").unwrap()),
        ("all gone", |pages| {
            fs::remove_file(pages.parent().unwrap().with_file_name("sealed")).unwrap();
        }),
    ];
    let dir = DataDir::new();
    for (what, damage) in damages {
        let service = dir.start(0).await;
        let storage = service.handle();
        let pages = snapshot(&storage).await;
        // By hand, or by a file system that does not keep its promises.
        let memory = pages.parent().unwrap();
        let mut unlock = Command::new("btrfs");
        unlock.args(["property", "set", "-f"]).arg(memory).args(["ro", "false"]);
        assert!(unlock.status().unwrap().success());
        damage(&pages);
        let error = storage.build(&build_id(1)).await.unwrap_err();
        assert_corrupt(&error, "elete the snapshot");
        // It is not removed behind anybody's back, and goes when it is told to.
        service.shutdown().await;
        let service = dir.start(0).await;
        let storage = service.handle();
        assert_corrupt(&storage.build(&build_id(1)).await.unwrap_err(), "elete the snapshot");
        assert!(storage.delete_build(&build_id(1)).await.unwrap(), "{what}");
        assert!(!dir.path().join("pool/saved").join(build_id(1)).exists());
        assert!(dir.layers().is_empty());
        service.shutdown().await;
    }
}

/// The file system below a saved checkpoint notices altered data.
#[tokio::test]
async fn a_checkpoint_whose_bytes_were_altered_cannot_be_read() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let pages = snapshot(&service.handle()).await;
    let content = fs::read(&pages).unwrap();
    service.shutdown().await;
    assert!(!dir.mounted());
    let image = dir.path().join("pool.img");
    flip(&image, find(&image, &content[..64 << 10]));

    let service = dir.start(0).await;
    let error = fs::read(&pages).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EIO as i32));
    service.shutdown().await;
}

/// Where in a file something is that begins at a page.
fn find(path: &Path, what: &[u8]) -> u64 {
    let file = File::open(path).unwrap();
    let mut buffer = vec![0; what.len()];
    let mut at = 0;
    loop {
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)).unwrap() & !4095;
        while file.read_exact_at(&mut buffer[..4096], at).is_ok() && buffer[..4096] != what[..4096]
        {
            at += 4096;
        }
        file.read_exact_at(&mut buffer, at).unwrap();
        if buffer == what {
            return at;
        }
        at += 4096;
    }
}
