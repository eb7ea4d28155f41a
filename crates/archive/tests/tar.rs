//! Archives as GNU tar writes them, in each of its formats.

#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
};

use atoll_archive::{Archive, Entry, Error, Kind, decompress};

fn tar(directory: &Path, options: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    command.arg("-C").arg(directory).args(options).args(["--sort=name", "-cf", "-", "."]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn entries(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
    let mut archive = Archive::new(decompress(archive)?);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut data = Vec::new();
        archive.read_to_end(&mut data)?;
        entries.push((entry, data));
    }
    archive.drain()?;
    Ok(entries)
}

fn find<'a>(entries: &'a [(Entry, Vec<u8>)], name: &str) -> &'a (Entry, Vec<u8>) {
    let wanted = format!("./{name}");
    entries.iter().find(|(entry, _)| entry.path == wanted.as_bytes()).unwrap()
}

#[test]
fn every_format_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let long = "n".repeat(200);
    fs::write(directory.path().join("file"), "content").unwrap();
    fs::hard_link(directory.path().join("file"), directory.path().join("second")).unwrap();
    symlink("file", directory.path().join("link")).unwrap();
    fs::create_dir(directory.path().join("sub")).unwrap();
    for (options, has_long_names) in [
        (&["--format=gnu"][..], true),
        (&["--format=posix"], true),
        (&["--format=gnu", "--gzip"], true),
        (&["--format=ustar"], false),
        (&["--format=v7"], false),
    ] {
        let path = directory.path().join("sub").join(&long);
        if has_long_names {
            fs::write(&path, "long").unwrap();
            symlink(&long, directory.path().join("sub/to")).unwrap();
        }
        let entries = entries(&tar(directory.path(), options)).unwrap();
        let (file, data) = find(&entries, "file");
        assert_eq!((file.kind, file.stored, data.as_slice()), (Kind::File, 7, &b"content"[..]));
        assert_eq!(file.mode, 0o644);
        let (second, _) = find(&entries, "second");
        assert_eq!((second.kind, second.link.as_slice()), (Kind::HardLink, &b"./file"[..]));
        let (link, _) = find(&entries, "link");
        assert_eq!((link.kind, link.link.as_slice()), (Kind::Symlink, &b"file"[..]));
        assert_eq!(find(&entries, "sub/").0.kind, Kind::Directory);
        if has_long_names {
            assert_eq!(find(&entries, &format!("sub/{long}")).1, b"long");
            assert_eq!(find(&entries, "sub/to").0.link, long.as_bytes());
            fs::remove_file(&path).unwrap();
            fs::remove_file(directory.path().join("sub/to")).unwrap();
        }
    }
}

#[test]
fn every_way_to_write_holes_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = File::create(directory.path().join("sparse")).unwrap();
    // More pieces than fit a header.
    for piece in 0_u64..40 {
        file.seek(SeekFrom::Start((piece << 20) + (64 << 10))).unwrap();
        file.write_all(format!("piece {piece}").as_bytes()).unwrap();
    }
    file.set_len(100 << 20).unwrap();
    let expected = fs::read(directory.path().join("sparse")).unwrap();
    for options in [
        &["--sparse", "--format=gnu"][..],
        &["--sparse", "--format=posix", "--sparse-version=0.0"],
        &["--sparse", "--format=posix", "--sparse-version=0.1"],
        &["--sparse", "--format=posix", "--sparse-version=1.0"],
    ] {
        let archive = tar(directory.path(), options);
        assert!(archive.len() < 1 << 20);
        let entries = entries(&archive).unwrap();
        let (entry, data) = find(&entries, "sparse");
        let (size, extents) = entry.sparse.as_ref().unwrap();
        let mut content = vec![0; usize::try_from(*size).unwrap()];
        let mut stored = data.as_slice();
        for extent in extents {
            let start = usize::try_from(extent.offset).unwrap();
            let length = usize::try_from(extent.length).unwrap();
            stored.read_exact(&mut content[start..start + length]).unwrap();
        }
        assert!(content == expected, "{options:?}");
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), vec![7; 5000]).unwrap();
    let archive = tar(directory.path(), &["--format=posix"]);
    assert_eq!(entries(&archive).unwrap().len(), 2);
    for bad in [&b""[..], b"no archive", &[7; 2048], &archive[..1700], &archive[..3000]] {
        assert!(entries(bad).is_err(), "{}", bad.len());
    }
    let mut damaged = archive;
    damaged[30] ^= 1;
    assert!(entries(&damaged).unwrap_err().to_string().contains("checksum"));
}

proptest::proptest! {
    /// Any header with a right checksum, with anything behind it.
    #[test]
    fn any_bytes_are_survived(
        kind in proptest::sample::select(&b"0123456789xgLKSDVM\0"[..]),
        fields: [u8; 32],
        size in 0_u32..2000,
        rest in proptest::collection::vec(proptest::num::u8::ANY, 0..3000),
    ) {
        let mut block = [0_u8; 512];
        block[0] = b'a';
        block[380..412].copy_from_slice(&fields);
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        block[148..155].copy_from_slice(format!("{sum:07o}").as_bytes());
        let archive: Vec<u8> = block.into_iter().chain(rest).collect();
        let _ = entries(&archive);
    }
}
