//! Layers of what sandboxes wrote.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
    process::Command,
};

use rustix::fs::XattrFlags;

use crate::{DataDir, MIB, Overlay, fill, layer, until};

/// A root of these layers, lowest first, as sandboxes have it.
fn root_of(lower: &[&Path]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let lower: Vec<_> = lower.iter().rev().map(|dir| dir.display().to_string()).collect();
    let options = format!("lowerdir={},redirect_dir=on,index=off", lower.join(":"));
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(root.path());
    assert!(mount.status().unwrap().success());
    root
}

/// Names below a directory, with what they are, owner and mode.
fn listed(root: &Path) -> Vec<String> {
    let show = "find . -printf '%P %y %U:%G %m %n %s %l\\n' | sort";
    let output = Command::new("sh").args(["-c", show]).current_dir(root).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // Sizes of directories are the file system's own affair.
    let line = |line: &str| match line.contains(" d ") {
        true => line.rsplitn(4, ' ').last().unwrap().to_owned(),
        false => line.to_owned(),
    };
    text.lines().map(line).collect()
}

#[tokio::test]
async fn a_layer_of_what_was_written_looks_the_same_from_above() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let base = storage.new_layer().await.unwrap();
    for path in ["old/a", "old/b", "hidden/c", "moved/d", "plain"] {
        let path = base.dir().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "below").unwrap();
    }
    let base = storage.layer_dir(&base.commit(layer("base")).await.unwrap());
    let disk = storage.take_disk(100 * MIB).await.unwrap();
    let overlay = Overlay::on(&disk, &base);

    fs::remove_file(overlay.path("old/a")).unwrap();
    fs::remove_dir_all(overlay.path("hidden")).unwrap();
    fs::create_dir(overlay.path("hidden")).unwrap();
    fs::rename(overlay.path("moved"), overlay.path("new")).unwrap();
    fs::write(overlay.path("plain"), "changed").unwrap();
    chown(overlay.path("plain"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(overlay.path("plain"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(overlay.path("plain"), overlay.path("twin")).unwrap();
    symlink("/nowhere", overlay.path("link")).unwrap();
    let sparse = fs::File::create(overlay.path("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    rustix::fs::setxattr(overlay.path("sparse"), "user.k", b"v", XattrFlags::empty()).unwrap();
    assert!(Command::new("mkfifo").arg(overlay.path("pipe")).status().unwrap().success());
    fill(&overlay.path("big"), 5 * MIB).unwrap();
    fs::create_dir_all(overlay.path("run/own")).unwrap();
    let before = listed(&overlay.path(""));

    let saved = storage.seal(&disk, "step").await.unwrap();
    let made = storage
        .layer_of(&saved, 100 * MIB, "", &["run/own"], layer("step"))
        .await
        .unwrap()
        .unwrap();
    let twin = storage.layer_of(&saved, 100 * MIB, "", &[], layer("step")).await.unwrap().unwrap();
    storage.discard_layer(&twin).await.unwrap();
    assert!(!storage.layer_dir(&twin).exists());
    let made = storage.layer_dir(&made);
    let root = root_of(&[&base, &made]);
    let expected: Vec<_> = before.into_iter().filter(|line| !line.starts_with("run/own")).collect();
    assert_eq!(listed(root.path()), expected);
    assert_eq!(fs::read_to_string(root.path().join("twin")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(root.path().join("new/d")).unwrap(), "below");
    let sparse = fs::metadata(root.path().join("sparse")).unwrap();
    assert!(sparse.blocks() < 1000, "{} blocks", sparse.blocks());
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(root.path().join("sparse"), "user.k", &mut value[..]);
    assert_eq!(&value[..length.unwrap()], b"v");
    assert!(fs::metadata(root.path().join("pipe")).unwrap().file_type().is_fifo());
    assert!(Command::new("umount").arg(root.path()).status().unwrap().success());

    drop(overlay);
    saved.destroy().await.unwrap();
    disk.destroy().await.unwrap();
    service.shutdown().await;
}

#[tokio::test]
async fn there_is_no_layer_of_nothing() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let disk = storage.take_disk(100 * MIB).await.unwrap();
    fs::create_dir_all(disk.upper().join("run/own/more")).unwrap();
    let saved = storage.seal(&disk, "step").await.unwrap();
    let before = dir.layers();
    assert!(
        storage
            .layer_of(&saved, 100 * MIB, "", &["run/own", "tmp"], layer("x"))
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(dir.layers(), before);
    saved.clone().destroy().await.unwrap();
    let gone = storage.layer_of(&saved, 100 * MIB, "", &[], layer("x")).await.unwrap_err();
    assert_eq!(gone.code, atoll_core::error::codes::NOT_FOUND);
    disk.destroy().await.unwrap();
    service.shutdown().await;
}

#[tokio::test]
async fn a_layer_that_nobody_waits_for_is_none() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let draft = storage.new_layer().await.unwrap();
    fill(&draft.dir().join("big"), 20 * MIB).unwrap();
    tokio::select! {
        biased;
        made = draft.commit(layer("x")) => panic!("{made:?}"),
        () = std::future::ready(()) => {}
    }
    until("the layer is gone", || dir.layers().is_empty()).await;
    assert!(storage.layers().await.is_empty());
    service.shutdown().await;
}
