use std::{
    fs::Permissions,
    os::unix::fs::{PermissionsExt, symlink},
};

use flate2::read::GzDecoder;
use tempfile::TempDir;

use super::*;

/// The tree that the vectors were made of.
fn tree() -> (TempDir, Context) {
    let directory = TempDir::new().unwrap();
    let root = directory.path();
    for (path, content, mode) in [
        ("app.py", "print(1)\n", 0o644),
        ("run.sh", "#!/bin/sh\n", 0o755),
        ("src/a.py", "a", 0o644),
        ("src/b.txt", "bb", 0o644),
        ("src/deep/c.py", "ccc", 0o644),
        ("src-x/d.py", "d", 0o644),
        ("src/__pycache__/a.pyc", "x", 0o644),
        (".hidden/e", "e", 0o644),
        ("big.log", "log", 0o644),
        (".dockerignore", "# c\n**/__pycache__\n*.log\n.dockerignore\n", 0o644),
    ] {
        let path = root.join(path);
        for parent in path.ancestors().skip(1).take_while(|parent| parent.starts_with(root)) {
            fs::create_dir_all(parent).unwrap();
            fs::set_permissions(parent, Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    symlink("a.py", root.join("src/link")).unwrap();
    symlink("/nowhere", root.join("broken")).unwrap();
    symlink("src", root.join("dirlink")).unwrap();
    let context = Context::open(root).unwrap();
    (directory, context)
}

/// `calculate_files_hash` of e2b 2.63.0 for Python, of the same tree.
#[test]
fn hashes_are_those_of_the_published_sdk() {
    let (_directory, context) = tree();
    for (source, destination, expected) in [
        ("app.py", "/app/", "a38143023e6124250cb81a8fbac4e50dc973ee7dd51a4ea0ea25c33c29811eee"),
        ("src", "/app", "0e04b9dc5683a729eba1f9e364c9fc22de7407babdbb97c192874bdf35b78b3c"),
        (".", "/app", "f987690af51324c77079ca11ec3d14f7fcae68979c86e07754727614ed8b67b7"),
        ("src/", "/x", "95baa313a97eb9bbe94552bd612b5799c256896be08183a23a65f2aa5683d09b"),
        (
            "./src/../run.sh",
            "run.sh",
            "a6d16211cf3e19888af04b7152978dad7f71b129c686c181e36c00d15f33b098",
        ),
        ("s*", "/y", "b7327762c8038e080919cb87704d4a3fa69cc2663928f350c7a29da32d2f02ac"),
        ("**/*.py", "/z", "31ccb1fdf59969f928ba779f3eab7814490d38555e3c53528ee244bb55112486"),
        ("src/*", "/w", "3ff9c7dd7c569576ad85750f30eefbe5602a817e303973d227bd502174dbf0d9"),
        ("src/**", "/sall", "9d07c88f76af5d5cc942a1d25f02af1ab3c0b3cab04add66882dd56f539861df"),
        ("broken", "/b", "0604327d4ec25a568eaa46a5c91323a4f8f22867f327a313028ec3a6f170f00a"),
        ("src/[ab].*", "/c", "7cea813df68a570b409c047cca2a71fb2e73f63a855da82c355fedd0e9848b81"),
        ("dirlink", "/l", "22ee562f5d88976908c53cfe31de6d45ee21fa2819c23e1498406a7b97945239"),
        ("dirlink/a.py", "/dl", "5a4c12787257a1a4db801d2885fd2aac5b41d06d597cf7156dc501e83b6f9df6"),
    ] {
        assert_eq!(context.hash(source, destination).unwrap(), expected, "{source}");
    }
}

#[test]
fn nothing_to_copy_is_an_error() {
    let (_directory, context) = tree();
    for source in ["nope", "*.log", "src/nope*", "app.py/", "src/__pycache__", "app.py/x"] {
        let text = context.hash(source, "/").unwrap_err().to_string();
        assert!(text.contains("nothing to copy") && text.contains(source), "{text}");
    }
    assert!(context.hash("src/[", "/").is_err());
}

#[test]
fn a_link_does_not_lead_out() {
    let (directory, context) = tree();
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), "x").unwrap();
    symlink(outside.path(), directory.path().join("out")).unwrap();
    for source in ["out/secret", "out/*", "out/**", "*/secret"] {
        assert!(context.hash(source, "/").is_err(), "{source}");
    }
    // The link itself is copied.
    assert_eq!(context.files("out").unwrap(), [Path::new("out")]);
}

#[test]
fn sources_stay_inside() {
    for source in [".", "a", "./a/b", "a/../b", "..a", "a/"] {
        assert!(is_inside(source), "{source}");
    }
    for source in ["/a", "..", "../a", "a/../../b", "./.."] {
        assert!(!is_inside(source), "{source}");
    }
}

/// Names, kinds, modes, sizes and targets of an archive's entries.
fn entries(file: File) -> Vec<(String, tar::EntryType, u32, u64, Option<PathBuf>)> {
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        found.push((
            entry.path().unwrap().to_string_lossy().trim_end_matches('/').to_owned(),
            header.entry_type(),
            header.mode().unwrap(),
            entry.size(),
            entry.link_name().unwrap().map(std::borrow::Cow::into_owned),
        ));
    }
    found
}

/// The entries of `tar_file_stream` of e2b 2.63.0 for Python.
#[test]
fn an_archive_holds_what_the_published_sdk_packs() {
    use tar::EntryType::{Directory, Regular, Symlink};
    let (_directory, context) = tree();
    let found = entries(context.archive(".").unwrap());
    let expected = [
        (".", Directory, 0o755, 0, None),
        (".hidden", Directory, 0o755, 0, None),
        (".hidden/e", Regular, 0o644, 1, None),
        ("app.py", Regular, 0o644, 9, None),
        ("broken", Symlink, 0o777, 0, Some("/nowhere")),
        ("dirlink", Symlink, 0o777, 0, Some("src")),
        ("run.sh", Regular, 0o755, 10, None),
        ("src", Directory, 0o755, 0, None),
        ("src-x", Directory, 0o755, 0, None),
        ("src-x/d.py", Regular, 0o644, 1, None),
        ("src/a.py", Regular, 0o644, 1, None),
        ("src/b.txt", Regular, 0o644, 2, None),
        ("src/deep", Directory, 0o755, 0, None),
        ("src/deep/c.py", Regular, 0o644, 3, None),
        ("src/link", Symlink, 0o777, 0, Some("a.py")),
    ]
    .map(|(name, kind, mode, size, target)| {
        (name.to_owned(), kind, mode, size, target.map(PathBuf::from))
    });
    assert_eq!(found, expected);
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let (directory, context) = tree();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    fs::create_dir(directory.path().join("d".repeat(120))).unwrap();
    fs::write(directory.path().join(&long), "long").unwrap();
    let bytes = || {
        let mut bytes = Vec::new();
        context.archive(".").unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let first = bytes();
    assert_eq!(first, bytes());
    assert!(entries(context.archive(".").unwrap()).iter().any(|entry| entry.0 == long));
}
