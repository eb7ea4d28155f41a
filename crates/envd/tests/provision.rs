//! `envd provision` and `envd user`, on trees as images have them. As root, for they change their
//! root to the tree.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

struct Image {
    directory: tempfile::TempDir,
}

impl Image {
    fn new(files: &[(&str, &str)]) -> Self {
        let image = Self { directory: tempfile::tempdir().unwrap() };
        for (path, text) in files {
            let path = image.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            if path.parent().unwrap().ends_with("bin") || path.ends_with("sh") {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        image
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.path(path)).unwrap().mode() & 0o7777
    }

    fn envd(&self, command: &str, args: &[&str]) -> Output {
        let mut envd = Command::new(env!("CARGO_BIN_EXE_envd"));
        envd.args([command, "--root"]).arg(self.directory.path()).args(args).output().unwrap()
    }

    /// Provisions it; returns what was noticed.
    fn provision(&self, args: &[&str]) -> String {
        let output = self.envd("provision", args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// All files with their text.
    fn all(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        let mut ahead = vec![self.directory.path().to_owned()];
        while let Some(directory) = ahead.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => ahead.push(entry.path()),
                    kind if kind.is_file() => {
                        all.push((entry.path(), fs::read(entry.path()).unwrap()));
                    }
                    _ => {}
                }
            }
        }
        all.sort();
        all
    }
}

const DEBIAN: &[(&str, &str)] = &[
    ("bin/sh", "shell"),
    ("bin/bash", "shell"),
    ("usr/bin/sudo", "sudo"),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/bash"),
    ("etc/group", "root:x:0:\nsudo:x:27:node\nnode:x:1000:"),
    ("etc/shadow", "root:*:19000:0:99999:7:::\nnode:!:19000:0:99999:7:::"),
    ("etc/gshadow", "root:*::\nsudo:*::node"),
    ("etc/os-release", "NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n"),
    ("etc/profile", "umask 022"),
    ("etc/skel/.bashrc", "# skel\n"),
    ("etc/skel/.config/x", "x"),
    ("usr/local/lib/tool", "tool"),
];

#[test]
fn a_debian_gets_a_user_with_sudo() {
    let image = Image::new(DEBIAN);
    symlink("/run/resolvconf/resolv.conf", image.path("etc/resolv.conf")).unwrap();
    assert_eq!(image.provision(&[]), "notice: the distribution is debian 12\n");
    assert!(image.text("etc/passwd").ends_with(
        "node:x:1000:1000::/home/node:/bin/bash\nuser:x:1001:1001::/home/user:/bin/bash\n"
    ));
    assert_eq!(
        image.text("etc/group"),
        "root:x:0:\nsudo:x:27:node,user\nnode:x:1000:\nuser:x:1001:\n"
    );
    assert_eq!(image.text("etc/gshadow"), "root:*::\nsudo:*::node,user\nuser:!::\n");
    let shadow = image.text("etc/shadow");
    assert!(shadow.starts_with("root::19000:") && shadow.contains("\nuser::"), "{shadow}");
    assert!(shadow.contains("\nnode:!:"), "others keep their passwords");
    assert_eq!(image.text("etc/sudoers.d/user"), "user ALL=(ALL:ALL) NOPASSWD: ALL\n");
    assert_eq!(image.mode("etc/sudoers.d/user"), 0o440);
    for path in ["home/user", "home/user/.bashrc", "home/user/.config/x"] {
        let metadata = fs::metadata(image.path(path)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1001, 1001), "{path}");
    }
    assert!(image.text("etc/profile").starts_with("umask 022\n\nif [ -n"));
    assert_eq!(
        image.text("etc/profile.d/shell.sh"),
        "export SHELL=/bin/bash\nexport PS1='\\w \\$ '\n"
    );
    assert_eq!(image.text("etc/resolv.conf"), "nameserver 169.254.0.22\n");
    for (path, mode) in [
        ("tmp", 0o1777),
        ("var/tmp", 0o1777),
        ("code", 0o777),
        ("usr/local", 0o777),
        ("usr/local/lib/tool", 0o666),
    ] {
        assert_eq!(image.mode(path), mode, "{path}");
    }
    let before = image.all();
    image.provision(&[]);
    assert_eq!(image.all(), before, "twice is once");
}

#[test]
fn an_image_with_next_to_nothing_becomes_a_template() {
    let image = Image::new(&[("busybox/sh", "shell")]);
    let notices = image.provision(&[]);
    assert!(notices.contains("the distribution is unknown"), "{notices}");
    assert!(notices.contains("no bash") && notices.contains("no sudo"), "{notices}");
    assert_eq!(fs::read_link(image.path("bin/sh")).unwrap(), Path::new("/busybox/sh"));
    assert_eq!(image.text("bin/bash"), "#!/bin/sh\nexec /bin/sh \"$@\"\n");
    assert_eq!(image.mode("bin/bash"), 0o755);
    assert_eq!(
        image.text("etc/passwd"),
        "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n"
    );
    assert_eq!(image.text("etc/group"), "root:x:0:\nuser:x:1000:\n");
    assert_eq!(image.text("etc/shadow"), "root::19000:0:99999:7:::\nuser::19000:0:99999:7:::\n");
    assert_eq!(image.mode("etc/shadow"), 0o640);
    assert_eq!(fs::metadata(image.path("home/user")).unwrap().uid(), 1000);
}

#[test]
fn an_image_without_a_shell_is_told_what_it_lacks() {
    let image = Image::new(&[("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")]);
    let output = image.envd("provision", &[]);
    assert_eq!(output.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/bin/sh"));
}

fn certificate(text: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[test]
fn certificates_are_added_to_each_bundle_once() {
    let known = certificate("a25vd24=");
    let files = [("bin/sh", "shell"), ("etc/pki/tls/certs/ca-bundle.crt", known.trim_end())];
    let image = Image::new(&files);
    fs::create_dir_all(image.path("etc/pki/ca-trust/source/anchors")).unwrap();
    fs::create_dir_all(image.path("etc/ssl/certs")).unwrap();
    fs::write(image.path("etc/ssl/certs/ca-certificates.crt"), certificate("b3RoZXI=")).unwrap();
    let bundle = tempfile::NamedTempFile::new().unwrap();
    fs::write(bundle.path(), format!("# ours\n{known}{}", certificate("bmV3"))).unwrap();
    let args = ["--ca-bundle", bundle.path().to_str().unwrap()];
    image.provision(&args);
    let all = image.all();
    image.provision(&args);
    assert_eq!(image.all(), all);
    assert_eq!(image.text("etc/pki/tls/certs/ca-bundle.crt"), known.clone() + &certificate("bmV3"));
    assert_eq!(image.text("etc/ssl/certs/ca-certificates.crt").matches("BEGIN").count(), 3);
    assert_eq!(image.text("etc/pki/ca-trust/source/anchors/atoll-2.crt"), certificate("bmV3"));
    assert!(
        image.text("etc/environment").contains("SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt")
    );

    let bare = Image::new(&[("bin/sh", "shell")]);
    bare.provision(&args);
    assert_eq!(bare.text("etc/ssl/certs/ca-certificates.crt").matches("BEGIN").count(), 2);
    assert!(bare.path("usr/local/share/ca-certificates/atoll-1.crt").exists());
}

#[test]
fn a_step_gets_another_user() {
    let image = Image::new(DEBIAN);
    assert!(image.envd("user", &["app"]).status.success());
    assert!(image.envd("user", &["--sudo", "node"]).status.success());
    assert!(image.text("etc/passwd").ends_with("\napp:x:1001:1001::/home/app:/bin/bash\n"));
    assert!(!image.path("etc/sudoers.d/app").exists());
    assert!(image.text("etc/sudoers.d/node").starts_with("node ALL"));
    for name in ["", "a:b", "a\nb", "../x", "-x"] {
        assert_eq!(image.envd("user", &["--", name]).status.code(), Some(64), "{name:?}");
    }
}
