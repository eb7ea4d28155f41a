//! The base template for real: downloads a distribution and installs it. Needs root, the network
//! and minutes.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
    sync::Mutex,
    time::{Duration, Instant},
};

use atoll_storage::Service;
use atoll_template::{CaBundle, Handle, Options, Progress};

/// Keeps the fractions, and shows the output when a test fails.
#[derive(Default)]
struct Watch(Mutex<Vec<f32>>);

impl Progress for Watch {
    fn step(&self, fraction: f32, what: &str) {
        println!("{:3.0} % {what}", fraction * 100.0);
        self.0.lock().unwrap().push(fraction);
    }

    fn line(&self, text: &str) {
        println!("{text}");
    }
}

/// A data directory whose pool is unmounted at the end, whatever happened.
struct DataDir(tempfile::TempDir);

impl DataDir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn start(&self) -> Service {
        let data_dir = self.0.path().to_owned();
        let keep = std::collections::HashSet::new();
        let options =
            atoll_storage::Options { data_dir, pool_bytes: Some(512 << 20), disks: 0, keep };
        Service::start(options).await.unwrap()
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        let point = self.0.path().join("pool");
        drop(Command::new("umount").args(["--lazy", "--quiet"]).arg(point).status());
    }
}

fn options(envd: &'static [u8], envd_version: &str) -> Options {
    let envd_version = envd_version.into();
    Options { ca_bundle: CaBundle::Host, envd, interpreter: b"interpreter", envd_version }
}

/// Runs a command as `user` in a chroot, with the host's network and name server, and returns its
/// output; the tree is as before afterwards.
fn inside(tree: &Path, user: &str, command: &str) -> String {
    let script = r#"
        set -eu
        mount -t proc proc "$1/proc"
        mount --bind /dev "$1/dev"
        mount --bind /etc/resolv.conf "$1/etc/resolv.conf"
        mount --bind /etc/hosts "$1/etc/hosts"
        mount -t tmpfs -o mode=1777 tmp "$1/tmp"
        exec chroot "$1" su -l "$2" -c "$3"
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"])
        .args(["sh", "-c", script, "sh"])
        .arg(tree)
        .args([user, command])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}\n{out}\n{err}");
    out.trim().to_owned()
}

#[tokio::test]
async fn the_runtime_layer_is_made_once_for_each_version() {
    let dir = DataDir::new();
    let service = dir.start().await;
    let storage = service.handle();
    let one = Handle::new(options(b"envd one", "0.6.13"), storage.clone());
    let two = Handle::new(options(b"envd two", "0.6.14"), storage.clone());
    let (first, again) = tokio::join!(one.ensure_runtime_layer(), one.ensure_runtime_layer());
    let (first, again) = (first.unwrap(), again.unwrap());
    assert_eq!(first, again);
    assert_ne!(first, two.ensure_runtime_layer().await.unwrap());

    let program = storage.layer_dir(&first).join("usr/bin/envd");
    assert_eq!(fs::read(&program).unwrap(), b"envd one");
    let beside = program.with_file_name("code-interpreter");
    assert_eq!(fs::read(&beside).unwrap(), b"interpreter");
    let meta = fs::metadata(&program).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.uid(), meta.gid()), (0o755, 0, 0));
    service.shutdown().await;

    let service = dir.start().await;
    let later = Handle::new(options(b"envd one", "0.6.13"), service.handle());
    assert_eq!(later.ensure_runtime_layer().await.unwrap(), first);
    service.shutdown().await;
}

// Rules: IMAGE-3, IMAGE-4, IMAGE-10
#[tokio::test]
#[ignore = "builds a distribution: run by make test-base"]
async fn base_is_built_once_and_is_what_its_users_expect() {
    let dir = DataDir::new();
    let service = dir.start().await;
    let storage = service.handle();
    let templates = Handle::new(options(b"envd", "0.6.13"), storage.clone());
    let watch = Watch::default();
    let begin = Instant::now();
    let (manifest, built) = templates.ensure_base(&watch).await.unwrap();
    println!("built in {:?}", begin.elapsed());
    assert!(built);
    let fractions = watch.0.into_inner().unwrap();
    assert!(fractions.is_sorted() && fractions.len() > 100);
    assert_eq!(fractions.last(), Some(&1.0));
    assert_eq!(manifest.default_user, "user");
    assert_eq!(storage.build(&manifest.id).await.unwrap(), Some(manifest.clone()));

    let tree = storage.layer_dir(&manifest.layers[0]);
    check_tree(&tree, &manifest.id);
    check_users(&tree);
    check_tools(&tree);

    // The second time it is there, and a new envd needs no new distribution.
    let (again, built) = templates.ensure_base(&Watch::default()).await.unwrap();
    assert!(!built);
    assert_eq!(again, manifest);
    let newer = Handle::new(options(b"newer", "0.6.14"), storage.clone());
    let (offered, built) = newer.ensure_base(&Watch::default()).await.unwrap();
    assert!(!built);
    assert_eq!((offered.id, offered.envd_version.as_str()), (manifest.id, "0.6.14"));
    service.shutdown().await;
}

/// What is on disk, seen from outside.
fn check_tree(tree: &Path, build: &str) {
    let read = |path: &str| fs::read_to_string(tree.join(path)).unwrap();
    let mode = |path: &str| fs::metadata(tree.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(read("etc/resolv.conf"), "nameserver 169.254.0.22\n");
    assert_eq!(read("etc/hostname"), "sandbox\n");
    assert!(read("etc/hosts").contains("localhost sandbox") && read("etc/hosts").contains("::1"));
    assert_eq!(read("etc/machine-id"), "");
    assert!(read(".e2b").contains(build));
    for empty in ["dev", "run", "tmp", "proc", "sys", "var/cache/apt/archives/partial"] {
        let left = fs::read_dir(tree.join(empty)).into_iter().flatten().count();
        assert_eq!(left, 0, "{empty}");
    }
    let lists = fs::read_dir(tree.join("var/lib/apt/lists")).unwrap();
    assert!(lists.flatten().all(|list| !list.file_name().to_string_lossy().contains("Packages")));
    assert!(!tree.join("atoll-build").exists());
    assert!(!tree.join("etc/apt/apt.conf.d/99mmdebstrap").exists());
    for (path, expected) in
        [("", 0o755), ("tmp", 0o1777), ("code", 0o777), ("usr/local", 0o777), ("home/user", 0o700)]
    {
        let got = mode(path);
        // Debian's useradd makes homes 0700 or 0755, as its release has it.
        assert!(got == expected || path == "home/user" && got == 0o755, "{path}: {got:o}");
    }
    // Every owner fits a sandbox's range of ids.
    let large = Command::new("find")
        .arg(tree)
        .args(["-uid", "+65535", "-o", "-gid", "+65535", "-o", "-type", "b", "-o", "-type", "c"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(large.stdout).unwrap(), "");
    let size = Command::new("du").args(["-sm"]).arg(tree).output().unwrap();
    println!("MiB: {}", String::from_utf8_lossy(&size.stdout));
}

fn check_users(tree: &Path) {
    assert_eq!(
        inside(tree, "user", "whoami; id -u; pwd; echo $SHELL"),
        "user\n1000\n/home/user\n/bin/bash"
    );
    assert_eq!(inside(tree, "user", "sudo -n id -u"), "0");
    assert_eq!(inside(tree, "user", "sudo -n -u user whoami"), "user");
    assert_eq!(inside(tree, "root", "whoami"), "root");
    assert_eq!(
        inside(tree, "user", "touch /usr/local/bin/x /code/x && rm /usr/local/bin/x /code/x"),
        ""
    );
}

/// Programs, and installing more of them, as `user` with the host's network.
fn check_tools(tree: &Path) {
    for tool in [
        "bash",
        "git",
        "curl",
        "wget",
        "socat",
        "jq",
        "less",
        "ss",
        "ping",
        "ps",
        "pgrep",
        "sudo",
        "gcc",
        "g++",
        "make",
        "ssh",
        "unzip",
        "zip",
        "xxd",
        "vi",
        "nano",
        "file",
        "fusermount3",
        "python",
        "python3",
        "pip",
        "pip3",
        "node",
        "npm",
        "npx",
    ] {
        inside(tree, "user", &format!("command -v {tool}"));
    }
    assert!(inside(tree, "user", "node --version").starts_with("v24."));
    assert_eq!(inside(tree, "user", "node -e 'console.log(6*7)'"), "42");
    assert_eq!(inside(tree, "user", "python -c 'print(6*7)'"), "42");
    inside(tree, "user", "npm --version && npx --version");
    // In the tmpfs, so that the tree stays as it is.
    inside(
        tree,
        "user",
        "pip install --quiet --target /tmp/pip six && PYTHONPATH=/tmp/pip python -c 'import six'",
    );
    inside(tree, "user", "python -m venv /tmp/venv && /tmp/venv/bin/pip install --quiet six");
    inside(
        tree,
        "user",
        "cd /tmp && npm install --silent is-number && node -e 'require(\"is-number\")'",
    );
    inside(
        tree,
        "root",
        "mount -t tmpfs lists /var/lib/apt/lists && mount -t tmpfs cache /var/cache && apt-get update -q -o Acquire::Check-Valid-Until=false && apt-get install -q --simulate tree",
    );
    inside(
        tree,
        "user",
        "printf '#include <Python.h>\\nint main(){return 0;}' > /tmp/a.c && gcc $(python3-config --includes) /tmp/a.c -o /tmp/a && /tmp/a",
    );
}

#[tokio::test]
#[ignore = "builds a distribution: run by make test-base"]
async fn a_build_that_is_given_up_leaves_no_process_and_no_layer() {
    let dir = DataDir::new();
    let service = dir.start().await;
    let templates = Handle::new(options(b"envd", "0.6.13"), service.handle());
    let watch = Watch::default();
    let build = templates.ensure_base(&watch);
    let given_up = async {
        while watch.0.lock().unwrap().iter().all(|fraction| *fraction < 0.06) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        result = build => panic!("ended by itself: {result:?}"),
        () = given_up => {}
    }
    let layers = dir.0.path().join("layers");
    let gone = async {
        while fs::read_dir(&layers).unwrap().next().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
    let path = layers.to_str().unwrap().to_owned();
    let left = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(&path).then_some(line)
    });
    assert_eq!(left.count(), 0);
    service.shutdown().await;
}
