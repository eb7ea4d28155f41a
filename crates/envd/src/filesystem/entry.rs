//! What clients are told about a file.

use std::fs::{self, FileType as Kind, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use atoll_wire::rpc::filesystem::{EntryInfo, FileType};
use buffa::MessageField;
use buffa_types::google::protobuf::Timestamp;

use crate::files::metadata;
use crate::paths::base_name;
use crate::users::Names;

/// The times that the wire format can say: the years 1 to 9999, in Unix seconds.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Describes what stands at `path`, blocking. A link is not followed, but has the type and mode of
/// what it leads to.
///
/// # Errors
/// What the system says, above all when there is nothing.
pub fn read(path: &Path, names: &Names) -> io::Result<EntryInfo> {
    Ok(describe(path, &fs::symlink_metadata(path)?, names))
}

/// As [`read`], with the metadata of `path` itself at hand.
pub fn describe(path: &Path, found: &Metadata, names: &Names) -> EntryInfo {
    let shown = path.to_string_lossy();
    let is_symlink = found.is_symlink();
    // Of a link that leads nowhere type and mode are unknown.
    let target = if is_symlink { fs::metadata(path).ok() } else { Some(found.clone()) };
    let symlink_target = is_symlink.then(|| {
        let target = fs::canonicalize(path);
        target.map_or_else(|_| shown.to_string(), |target| target.to_string_lossy().into_owned())
    });
    EntryInfo {
        name: base_name(&shown).to_owned(),
        r#type: target.as_ref().map_or(FileType::FILE_TYPE_UNSPECIFIED, kind).into(),
        size: i64::try_from(found.len()).unwrap_or(i64::MAX),
        mode: target.as_ref().map_or(0, |target| target.mode() & 0o777),
        permissions: permissions(found.file_type(), found.mode()),
        owner: names.user(found.uid()),
        group: names.group(found.gid()),
        modified_time: modified(found),
        symlink_target,
        metadata: metadata::read(path).into_iter().collect(),
        is_symlink,
        path: shown.into_owned(),
        ..EntryInfo::default()
    }
}

fn kind(found: &Metadata) -> FileType {
    if found.is_file() {
        FileType::FILE_TYPE_FILE
    } else if found.is_dir() {
        FileType::FILE_TYPE_DIRECTORY
    } else {
        FileType::FILE_TYPE_UNSPECIFIED
    }
}

/// A time that the wire format cannot say would spoil the whole answer; it is left out.
fn modified(found: &Metadata) -> MessageField<Timestamp, buffa::Inline<Timestamp>> {
    if !TIMES.contains(&found.mtime()) {
        return MessageField::none();
    }
    MessageField::some(Timestamp {
        seconds: found.mtime(),
        nanos: i32::try_from(found.mtime_nsec()).unwrap_or(0),
        ..Timestamp::default()
    })
}

/// Type and permissions in the notation of the wire contract: one or more letters, then `rwx` for
/// owner, group and others.
fn permissions(kind: Kind, mode: u32) -> String {
    let mut text = String::with_capacity(12);
    let device = kind.is_block_device() || kind.is_char_device();
    for (letter, applies) in [
        ('d', kind.is_dir()),
        ('L', kind.is_symlink()),
        ('D', device),
        ('p', kind.is_fifo()),
        ('S', kind.is_socket()),
        ('u', mode & 0o4000 != 0),
        ('g', mode & 0o2000 != 0),
        ('c', kind.is_char_device()),
        ('t', mode & 0o1000 != 0),
    ] {
        if applies {
            text.push(letter);
        }
    }
    if text.is_empty() {
        text.push('-');
    }
    for (bit, letter) in (0..9).rev().zip("rwxrwxrwx".chars()) {
        text.push(if mode & (1 << bit) == 0 { '-' } else { letter });
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn entry(path: &Path) -> EntryInfo {
        read(path, &Names::load()).unwrap()
    }

    fn text(path: &Path, mode: u32) -> String {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        entry(path).permissions
    }

    // Rules: STAT-3, STAT-8
    #[test]
    fn permissions_are_spelt_as_clients_know_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "abc").unwrap();
        assert_eq!(text(&file, 0o644), "-rw-r--r--");
        assert_eq!(text(&file, 0o4755), "urwxr-xr-x");
        assert_eq!(text(&file, 0o6000), "ug---------");
        assert_eq!(text(dir.path(), 0o1777), "dtrwxrwxrwx");
        assert_eq!(entry(&file).mode, 0, "without the set-id bits");
        assert_eq!(entry(Path::new("/dev/null")).permissions, "Dcrw-rw-rw-");
        assert_eq!(entry(Path::new("/dev/null")).r#type, FileType::FILE_TYPE_UNSPECIFIED);
    }

    // Rules: STAT-5, STAT-6, STAT-10, TRAP-28
    #[test]
    fn a_link_is_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let file = root.join("file");
        fs::write(&file, "0123456789").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("file", root.join("first")).unwrap();
        symlink("first", root.join("second")).unwrap();

        let link = entry(&root.join("second"));
        assert_eq!(link.r#type, FileType::FILE_TYPE_FILE);
        assert_eq!((link.mode, link.size), (0o640, 5));
        assert_eq!(link.permissions, "Lrwxrwxrwx");
        assert_eq!(link.symlink_target.as_deref(), file.to_str());
        assert!(link.is_symlink);
        assert!(!entry(&file).is_symlink);
        assert_eq!(entry(&file).symlink_target, None);
    }

    // Rules: STAT-6, STAT-7, TRAP-28
    #[test]
    fn a_link_to_nowhere_is_its_own_target() {
        let dir = tempfile::tempdir().unwrap();
        for (name, target) in [("broken", "missing"), ("cycle", "cycle")] {
            let path = dir.path().join(name);
            symlink(target, &path).unwrap();
            let link = entry(&path);
            assert_eq!(link.r#type, FileType::FILE_TYPE_UNSPECIFIED);
            assert_eq!(link.mode, 0);
            assert_eq!(link.symlink_target.as_deref(), path.to_str());
        }
    }

    #[test]
    fn a_time_beyond_words_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = fs::File::create(&path).unwrap();
        let shown = |seconds| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.set_modified(time).unwrap();
            // The file system may know fewer times than the wire.
            let kept = fs::metadata(&path).unwrap().mtime();
            (entry(&path).modified_time.is_set(), TIMES.contains(&kept))
        };
        let (set, representable) = shown(1_700_000_000);
        assert!(set && representable);
        let (set, representable) = shown(300_000_000_000);
        assert_eq!(set, representable);
        assert!(!TIMES.contains(&253_402_300_800));
    }
}
