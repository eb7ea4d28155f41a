//! Images of archives.

use std::{fs, path::Path, process::Command};

use atoll_core::error::codes;
use atoll_template::image::open_archive;
use serde_json::json;

use crate::support::{Layout, architecture, digest, gzip, layer, run, tool, zstd};

const LIMIT: u64 = 64 << 20;

fn tar(directory: &Path) -> Vec<u8> {
    let mut tar = Command::new("tar");
    run(tar.args(["-cf", "-", "-C"]).arg(directory).arg(".")).stdout
}

fn image() -> (Layout, serde_json::Value) {
    let layout = Layout::new();
    let first = layer(|root| fs::write(root.join("one"), "1").unwrap());
    let second = layer(|root| fs::write(root.join("two"), "2").unwrap());
    let manifest =
        layout.image(architecture(), &[(first.clone(), ""), (second, "+gzip"), (first, "")]);
    layout.index(vec![manifest.clone()]);
    (layout, manifest)
}

/// Only layers are left in the directory.
fn only_layers(directory: &Path, layers: usize) {
    assert_eq!(fs::read_dir(directory).unwrap().count(), layers);
}

#[test]
fn a_layout_is_read_however_it_is_compressed() {
    let (layout, manifest) = image();
    let archive = tar(layout.0.path());
    for archive in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let directory = tempfile::tempdir().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), archive).unwrap();
        let image = open_archive(file.path(), directory.path(), LIMIT).unwrap();
        assert_eq!(image.digest, manifest["digest"].as_str().unwrap());
        assert_eq!(image.config.workdir, "/srv");
        assert_eq!(image.layers.len(), 3);
        assert_eq!(image.layers[0].path, image.layers[2].path);
        for layer in &image.layers {
            assert_eq!(digest(&fs::read(&layer.path).unwrap()), layer.digest);
        }
        only_layers(directory.path(), 2);
    }
}

#[test]
fn what_docker_saves_is_read() {
    let (layout, _) = image();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("saved.tar");
    let mut skopeo = Command::new(tool("skopeo"));
    skopeo.args(["--insecure-policy", "copy"]).arg(format!("oci:{}:it", layout.0.path().display()));
    run(skopeo.arg(format!("docker-archive:{}:name:tag", file.display())));
    let directory = tempfile::tempdir().unwrap();
    let image = open_archive(&file, directory.path(), LIMIT).unwrap();
    assert!(image.digest.starts_with("sha256:"));
    assert_eq!(image.config.env[1].1, "blue");
    assert_eq!(image.layers.len(), 3);
    only_layers(directory.path(), 2);
}

#[test]
fn what_umoci_makes_is_read() {
    let place = tempfile::tempdir().unwrap();
    let layout = place.path().join("layout");
    let image = format!("{}:it", layout.display());
    let umoci = |args: &[&str]| run(Command::new(tool("umoci")).args(args));
    umoci(&["init", "--layout", layout.to_str().unwrap()]);
    umoci(&["new", "--image", &image]);
    let content = place.path().join("content");
    fs::write(&content, "content").unwrap();
    umoci(&["insert", "--image", &image, content.to_str().unwrap(), "/content"]);
    let file = place.path().join("layout.tar");
    fs::write(&file, tar(&layout)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(open_archive(&file, directory.path(), LIMIT).unwrap().layers.len(), 1);
}

#[test]
fn what_is_no_image_is_refused_and_leaves_nothing() {
    let refused = |archive: &[u8], limit: u64, expected: &str| {
        let directory = tempfile::tempdir().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), archive).unwrap();
        let error = open_archive(file.path(), directory.path(), limit).unwrap_err();
        assert_eq!(error.code, codes::IMAGE_REFUSED, "{error}");
        assert!(error.message.contains(expected), "{error}");
        only_layers(directory.path(), 0);
    };
    let (layout, manifest) = image();
    let whole = tar(layout.0.path());
    refused(b"nothing", LIMIT, "cannot be read");
    refused(&gzip(&whole)[..400], LIMIT, "cannot be read");
    refused(&whole, 1000, "expands to more than");
    // Also where nothing of it is kept.
    let bomb = gzip(&[whole.clone(), vec![0; 80 << 20]].concat());
    refused(&bomb, 4 << 20, "expands to more than");
    refused(&layer(|root| fs::write(root.join("x"), "x").unwrap()), LIMIT, "holds no image");

    let blob =
        layout.0.path().join("blobs/sha256").join(&manifest["digest"].as_str().unwrap()[7..]);
    let text = fs::read_to_string(&blob).unwrap();
    fs::write(&blob, text.replacen('2', "3", 1)).unwrap();
    refused(&tar(layout.0.path()), LIMIT, "not what its digest says");
    fs::remove_file(&blob).unwrap();
    refused(&tar(layout.0.path()), LIMIT, "lacks blobs/sha256");

    // Names of the description are looked up in the archive, and nowhere else.
    let saved = |layers: &[&str], ids: &[String]| {
        layer(|root| {
            let config = json!({ "architecture": architecture(), "rootfs": { "diff_ids": ids } });
            fs::write(root.join("config"), config.to_string()).unwrap();
            let manifest = json!([{ "Config": "config", "Layers": layers }]);
            fs::write(root.join("manifest.json"), manifest.to_string()).unwrap();
            fs::write(root.join("layer"), "layer").unwrap();
            std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        })
    };
    let id = digest(b"layer");
    refused(&saved(&["/etc/passwd"], std::slice::from_ref(&id)), LIMIT, "lacks /etc/passwd");
    refused(&saved(&["../../etc/passwd"], std::slice::from_ref(&id)), LIMIT, "lacks");
    refused(&saved(&["link"], std::slice::from_ref(&id)), LIMIT, "lacks link");
    refused(&saved(&["layer"], &[digest(b"other")]), LIMIT, "not what its digest says");
    refused(&saved(&["layer"], &[]), LIMIT, "has not the layers");
    refused(&saved(&["layer"; 501], &vec![id; 501]), LIMIT, "has 501 layers");
}
