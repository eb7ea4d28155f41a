//! Archives as registries and clients send them, and as someone would who means harm. As root, in a
//! directory with a canary beside the tree.

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};

use super::{Limits, copy::Copy, entry::Override, unpack};
use crate::tool::{Outcome, Reason};

const LIMITS: Limits = Limits { bytes: 64 << 20, entries: 1000 };

/// An archive that is written entry by entry.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: u8, name: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut block = [0_u8; 512];
        let mut put =
            |start: usize, text: &[u8]| block[start..start + text.len()].copy_from_slice(text);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000012");
        put(116, b"0000013");
        put(124, format!("{:011o}", data.len()).as_bytes());
        put(136, b"00000001750");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(block);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name, "", 0o640, content.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        self.entry(b'5', name, "", 0o750, b"")
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(b'2', name, to, 0o777, b"")
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(b'1', name, to, 0o644, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|all| rest + all.to_string().len() == *all).unwrap();
            data.extend(format!("{length} {key}=").into_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry(b'x', "pax", "", 0o644, &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A tree with a canary beside it.
struct Ground {
    directory: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/canary"), "alive").unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        Self { directory }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    fn unpack(&self, archive: &[u8]) -> Outcome<Vec<String>> {
        let result = unpack(archive, &self.path(""), LIMITS);
        self.is_safe();
        result
    }

    fn refused(&self, archive: Tar) -> String {
        let failure = self.unpack(&archive.end()).unwrap_err();
        assert_eq!(failure.reason, Reason::Refused, "{failure}");
        failure.message
    }

    fn copy(
        &self,
        archive: Tar,
        source: &str,
        destination: &str,
        mode: Option<u32>,
    ) -> Outcome<Vec<String>> {
        let files = Override { owner: (7, 8), mode };
        let step = Copy::new(source, destination, "/home/user", files);
        let result = step.run(archive.end().as_slice(), &self.path(""), LIMITS);
        self.is_safe();
        result
    }

    /// Nothing has been made or changed outside.
    fn is_safe(&self) {
        let names = |path: &str| fs::read_dir(self.directory.path().join(path)).unwrap().count();
        assert_eq!((names(""), names("outside")), (2, 1));
        let canary = self.directory.path().join("outside/canary");
        assert_eq!(fs::read_to_string(&canary).unwrap(), "alive");
        assert_eq!(fs::metadata(&canary).unwrap().nlink(), 1);
    }
}

#[test]
fn entries_become_what_they_say() {
    let ground = Ground::new();
    let archive = Tar::default()
        .directory("./")
        .directory("./bin")
        .entry(b'0', "./bin/su", "", 0o4755, b"program")
        .hard_link("bin/second", "bin/su")
        .hard_link("bin/third", "/bin/su")
        .symlink("bin/link", "/nowhere/at/all")
        .entry(b'6', "pipe", "", 0o600, b"")
        .entry(b'3', "null", "", 0o666, b"")
        .pax(&[
            ("path", format!("long/{}", "n".repeat(200)).as_bytes()),
            ("mtime", b"1350244992.5"),
            ("SCHILY.xattr.user.colour", b"blue"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("uid", b"4294967295"),
        ])
        .file("short", "long");
    let notices = ground.unpack(&archive.end()).unwrap();
    assert_eq!(notices[0], "devices are left out: null");
    assert!(notices[1].starts_with("owners that a sandbox cannot have"), "{notices:?}");
    let su = fs::metadata(ground.path("bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 10, 11, 1000));
    assert_eq!(su.nlink(), 3);
    assert_eq!(fs::metadata(ground.path("bin")).unwrap().mtime(), 1000, "set last");
    assert_eq!(fs::metadata(ground.path("")).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_link(ground.path("bin/link")).unwrap(), Path::new("/nowhere/at/all"));
    assert_eq!(fs::symlink_metadata(ground.path("bin/link")).unwrap().mtime(), 1000);
    assert!(fs::metadata(ground.path("pipe")).unwrap().file_type().is_fifo());
    assert!(!ground.has("null"));
    let long = ground.path("long").join("n".repeat(200));
    assert_eq!(fs::read_to_string(&long).unwrap(), "long");
    let times = fs::metadata(&long).unwrap();
    assert_eq!((times.mtime(), times.mtime_nsec()), (1_350_244_992, 500_000_000));
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(&long, "user.colour", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"blue");
    assert!(rustix::fs::getxattr(&long, "trusted.overlay.opaque", &mut value[..]).is_err());
}

#[test]
fn holes_stay_holes() {
    let ground = Ground::new();
    let archive = Tar::default()
        .pax(&[("GNU.sparse.size", b"1000000000"), ("GNU.sparse.map", b"500000000,4")])
        .file("sparse", "data");
    ground.unpack(&archive.end()).unwrap();
    let metadata = fs::metadata(ground.path("sparse")).unwrap();
    assert_eq!(metadata.len(), 1_000_000_000);
    assert!(metadata.blocks() < 1000);
    for map in ["0,5", "999999999,4", "4,2,2,2", "0,4,4"] {
        let records: [(&str, &[u8]); 2] =
            [("GNU.sparse.size", b"1000000000"), ("GNU.sparse.map", map.as_bytes())];
        ground.refused(Tar::default().pax(&records).file("sparse", "data"));
    }
}

#[test]
fn names_that_lead_outside_are_refused() {
    for name in ["/etc/passwd", "../outside/new", "a/../../outside/new", "..", "a/.."] {
        let ground = Ground::new();
        let message = ground.refused(Tar::default().file(name, "x"));
        assert!(message.contains(name), "{message}");
    }
    let ground = Ground::new();
    ground.refused(Tar::default().pax(&[("path", b"a\0b")]).file("x", "x"));
    ground.refused(Tar::default().pax(&[("path", &[b'n'; 300])]).file("x", "x"));
    ground.refused(Tar::default().pax(&[("path", &b"n/".repeat(2500))]).file("x", "x"));
    ground.refused(Tar::default().pax(&[("path", &b"n/".repeat(1500))]).file("x", "x"));
    ground.refused(Tar::default().file("./", "x"));
    ground.refused(Tar::default().symlink(".", "/"));
    assert!(!ground.has("x"));
}

#[test]
fn links_lead_no_further_than_the_root() {
    let ground = Ground::new();
    let outside = ground.directory.path().join("outside");
    let outside = outside.to_str().unwrap();
    let archive = Tar::default()
        .symlink("absolute", outside)
        .file("absolute/canary", "dead")
        .symlink("relative", "../outside")
        .file("relative/canary", "dead")
        .symlink("up", "../../../../../..")
        .file("up/file", "in the root")
        .symlink("bin", "usr/bin")
        .file("bin/program", "x");
    ground.unpack(&archive.end()).unwrap();
    assert_eq!(ground.text(&format!("{outside}/canary")[1..]), "dead", "inside, at that path");
    assert_eq!(ground.text("outside/canary"), "dead");
    assert_eq!(ground.text("file"), "in the root");
    assert_eq!(ground.text("usr/bin/program"), "x");
    let around = Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", "x");
    assert!(ground.refused(around).contains("too many links"));
    ground.refused(Tar::default().file("plain", "x").file("plain/x", "x"));
}

#[test]
fn the_last_part_of_a_name_is_never_followed() {
    let ground = Ground::new();
    let outside = ground.directory.path().join("outside");
    let canary = outside.join("canary");
    let archive = Tar::default()
        .symlink("to-file", canary.to_str().unwrap())
        .file("to-file", "mine")
        .symlink("to-directory", outside.to_str().unwrap())
        .directory("to-directory")
        .file("to-directory/canary", "mine")
        .symlink("in-place", canary.to_str().unwrap())
        .hard_link("second", "in-place");
    ground.unpack(&archive.end()).unwrap();
    assert_eq!(ground.text("to-file"), "mine");
    assert_eq!(ground.text("to-directory/canary"), "mine");
    assert!(fs::symlink_metadata(ground.path("second")).unwrap().is_symlink());
    // A tree that a layer below has made, with what it made replaced by links.
    let next = Tar::default().symlink("to-directory", outside.to_str().unwrap()).file("x", "x");
    ground.unpack(&next.end()).unwrap();
    assert!(fs::symlink_metadata(ground.path("to-directory")).unwrap().is_symlink());
    ground.unpack(&Tar::default().file(".wh.to-directory", "").end()).unwrap();
    assert!(!ground.has("to-directory"));
}

#[test]
fn hard_links_are_to_what_is_inside() {
    let ground = Ground::new();
    let outside = ground.directory.path().join("outside");
    for link in ["../outside/canary", "/../outside/canary", "", ".", "nothing"] {
        ground.refused(Tar::default().hard_link("x", link));
    }
    let through =
        Tar::default().symlink("door", outside.to_str().unwrap()).hard_link("x", "door/canary");
    assert!(ground.refused(through).contains("not there"));
    ground.refused(Tar::default().directory("d").hard_link("x", "d"));
    let itself = Tar::default().file("file", "x").hard_link("file", "file");
    ground.unpack(&itself.end()).unwrap();
    assert_eq!(ground.text("file"), "x");
}

#[test]
fn an_entry_replaces_one_of_another_kind() {
    let ground = Ground::new();
    let first = Tar::default().directory("a").file("a/x", "x").file("b", "b").symlink("c", "b");
    ground.unpack(&first.end()).unwrap();
    let second = Tar::default().file("a", "file").directory("b").file("b/y", "y").file("c", "c");
    ground.unpack(&second.end()).unwrap();
    assert_eq!(
        (ground.text("a"), ground.text("b/y"), ground.text("c")),
        ("file".into(), "y".into(), "c".into())
    );
}

#[test]
fn whiteouts_delete_what_lies_below() {
    let ground = Ground::new();
    let below = Tar::default()
        .file("gone", "x")
        .directory("tree")
        .file("tree/deep/old", "x")
        .directory("opaque")
        .file("opaque/old", "x")
        .file("opaque/sub/old", "x")
        .file("kept", "x");
    ground.unpack(&below.end()).unwrap();
    let layer = Tar::default()
        .file(".wh.gone", "")
        .file(".wh.tree", "")
        .file(".wh.never", "")
        .file("missing/.wh.never", "")
        .file("opaque/new", "new")
        .file("opaque/sub/new", "new")
        // After what the layer has itself, which stays.
        .file("opaque/.wh..wh..opq", "")
        .file(".wh..wh.plnk/1.2", "");
    ground.unpack(&layer.end()).unwrap();
    for path in ["gone", "tree", "opaque/old", "opaque/sub/old", "missing", ".wh.gone"] {
        assert!(!ground.has(path), "{path}");
    }
    assert_eq!(ground.text("opaque/new"), "new");
    assert_eq!(ground.text("opaque/sub/new"), "new");
    assert_eq!(fs::read_dir(ground.path("")).unwrap().count(), 2, "opaque and kept");
    for name in [".wh...", ".wh..", ".wh.", "kept/.wh.x"] {
        ground.refused(Tar::default().file(name, ""));
    }
    assert_eq!(ground.text("kept"), "x");
}

#[test]
fn an_archive_has_limits() {
    let ground = Ground::new();
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&Tar::default().entry(b'0', "bomb", "", 0o644, &vec![0; 65 << 20]).end())
        .unwrap();
    let failure = ground.unpack(&bomb.finish().unwrap()).unwrap_err();
    assert_eq!(failure.reason, Reason::Refused);
    assert!(failure.message.contains("expands to more than 67108864 bytes"), "{failure}");
    let many = (0..1001).fold(Tar::default(), |tar, index| tar.file(&format!("f{index}"), ""));
    assert!(ground.refused(many).contains("more than 1000 entries"));
    let name = vec![b'n'; 2 << 20];
    ground.refused(Tar::default().pax(&[("path", &name)]).file("x", "x"));
}

#[test]
fn what_is_damaged_is_refused() {
    let ground = Ground::new();
    let archive = Tar::default().file("a", &"a".repeat(5000)).file("b", "b").end();
    let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
    compressed.write_all(&archive).unwrap();
    let compressed = compressed.finish().unwrap();
    let mut wrong = archive.clone();
    wrong[3] ^= 1;
    let mut flipped = compressed.clone();
    let checksum = flipped.len() - 8;
    flipped[checksum] ^= 1;
    let cut = &compressed[..compressed.len() - 4];
    for bad in [&archive[..3000], cut, &flipped, &wrong, b"", b"nothing of the kind"] {
        let failure = ground.unpack(bad).unwrap_err();
        assert_eq!(failure.reason, Reason::Refused, "{failure}");
        assert!(failure.message.starts_with("the archive cannot be read: "), "{failure}");
    }
}

fn project() -> Tar {
    Tar::default()
        .directory("src")
        .file("src/main.py", "main")
        .directory("src/sub")
        .file("src/sub/a.txt", "a")
        .hard_link("src/again", "src/main.py")
        .symlink("src/dangling", "not/there")
        .symlink("src/absolute", "/etc/passwd")
        .symlink("src/relative", "sub/a.txt")
        .symlink("src/up", "../../..")
        .file("other", "other")
}

#[test]
fn a_directory_gives_what_is_in_it() {
    let ground = Ground::new();
    fs::create_dir_all(ground.path("app/sub")).unwrap();
    fs::write(ground.path("app/sub/kept"), "kept").unwrap();
    for source in ["src", "./src/", "other/../src"] {
        ground.copy(project(), source, "/app", None).unwrap();
        assert_eq!(ground.text("app/main.py"), "main");
        assert_eq!(ground.text("app/again"), "main");
        assert_eq!(ground.text("app/sub/a.txt"), "a");
        assert_eq!(ground.text("app/sub/kept"), "kept");
        for link in ["dangling", "absolute", "relative", "up"] {
            assert!(fs::symlink_metadata(ground.path("app").join(link)).unwrap().is_symlink());
        }
        assert!(!ground.has("app/src") && !ground.has("app/other"));
    }
    let owner = |path: &str| {
        let metadata = fs::symlink_metadata(ground.path(path)).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o777)
    };
    assert_eq!(owner("app/main.py"), (7, 8, 0o640));
    assert_eq!(owner("app/dangling").0, 7);
    assert_eq!(owner("app/sub").0, 0, "it was there before");
}

#[test]
fn a_file_goes_where_the_destination_says() {
    for (destination, expected) in [
        ("/etc/conf", "etc/conf"),
        ("/etc/", "etc/other"),
        ("/there", "there/other"),
        ("/to-there", "there/other"),
        ("to/name", "home/user/to/name"),
        ("./", "home/user/other"),
        (".", "home/user/other"),
        ("../up", "home/up"),
        ("/to-usr/x", "usr/x"),
        ("/old", "old"),
    ] {
        let ground = Ground::new();
        fs::create_dir(ground.path("there")).unwrap();
        fs::write(ground.path("old"), "old").unwrap();
        symlink("/there", ground.path("to-there")).unwrap();
        symlink("/usr", ground.path("to-usr")).unwrap();
        ground.copy(project(), "other", destination, Some(0o711)).unwrap();
        assert_eq!(ground.text(expected), "other", "{destination}");
        let mode = fs::metadata(ground.path(expected)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o711);
    }
    let ground = Ground::new();
    ground.copy(project(), "other", "new/deep/x", None).unwrap();
    assert_eq!(fs::metadata(ground.path("home/user/new/deep")).unwrap().uid(), 7);
}

#[test]
fn a_pattern_gives_what_lies_below_its_base() {
    let ground = Ground::new();
    ground.copy(project(), "src/*", "out", None).unwrap();
    assert_eq!(ground.text("home/user/out/sub/a.txt"), "a");
    ground.copy(project(), "src/**/*.txt", "/deep", None).unwrap();
    assert_eq!(ground.text("deep/sub/a.txt"), "a");
    ground.copy(Tar::default().file("x.txt", "x"), "*.txt", "/all/", None).unwrap();
    assert_eq!(ground.text("all/x.txt"), "x");
}

#[test]
fn a_copy_cannot_be_what_it_is_not() {
    let ground = Ground::new();
    let missing = ground.copy(project(), "missing", "/", None).unwrap_err();
    assert_eq!(missing.reason, Reason::Missing);
    assert!(missing.message.starts_with("missing: "), "{missing}");
    let outside = ground.directory.path().join("outside");
    for archive in [
        Tar::default().file("src/../../outside/x", "x"),
        Tar::default().file("/src/x", "x"),
        Tar::default().symlink("src/door", outside.to_str().unwrap()).file("src/door/x", "x"),
        Tar::default().symlink("src/door", "../..").file("src/door/x", "x"),
        Tar::default().file("other", "x").hard_link("src/x", "other"),
        Tar::default().hard_link("src/x", "../outside/canary"),
    ] {
        let failure = ground.copy(archive, "src", "/app", None).unwrap_err();
        assert_eq!(failure.reason, Reason::Refused, "{failure}");
    }
    // A link in the image leads where it leads, and a directory is not replaced by a file.
    fs::create_dir(ground.path("usr")).unwrap();
    symlink("/usr", ground.path("local")).unwrap();
    ground
        .copy(Tar::default().directory("src/local").file("src/local/x", "x"), "src", "/", None)
        .unwrap();
    assert_eq!(ground.text("usr/x"), "x");
    let replaced =
        ground.copy(Tar::default().symlink("src/usr", "/"), "src", "/", None).unwrap_err();
    assert!(replaced.message.contains("usr is a directory already"), "{replaced}");
}
