//! Small steps in the tree of an image, whose files are as its author left them: a fifo where a
//! configuration should be is not waited for, and a file is replaced as a whole.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

/// No configuration or bundle of certificates is larger.
const LARGEST: u64 = 16 << 20;
/// Directories within each other that are copied or opened.
const DEEPEST: usize = 200;

/// The root of an image; paths are relative to it.
pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The text of a file; none if there is no such file. Bytes that are not UTF-8 are an error:
    /// they would be lost when it is written again.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<String>> {
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits().cast_signed());
        let file = match options.open(self.path(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > LARGEST {
            return Err(io::Error::other(format!("/{path} is not a file to be read")));
        }
        let mut text = Vec::new();
        file.take(LARGEST).read_to_end(&mut text)?;
        let text = String::from_utf8(text)
            .map_err(|_| io::Error::other(format!("/{path} holds what is not UTF-8")))?;
        Ok(Some(text))
    }

    /// Writes a file as a whole. One that is there keeps its owner and mode; the file behind a link
    /// is replaced.
    pub(super) fn write(&self, path: &str, text: &str, mode: u32) -> io::Result<()> {
        let path = self.path(path);
        let path = fs::canonicalize(&path).unwrap_or(path);
        let before = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file);
        let mut draft = path.clone().into_os_string();
        draft.push(".atoll");
        let draft = PathBuf::from(draft);
        remove(&draft)?;
        if before.is_none() {
            // A link to nowhere, or no file.
            remove(&path)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&draft)?;
        let finish = |file: &mut File| {
            file.write_all(text.as_bytes())?;
            let mode = match &before {
                Some(before) => {
                    use std::os::unix::fs::MetadataExt;
                    chown(&draft, Some(before.uid()), Some(before.gid()))?;
                    before.mode() & 0o7777
                }
                None => mode,
            };
            file.set_permissions(Permissions::from_mode(mode))?;
            fs::rename(&draft, &path)
        };
        finish(&mut file).inspect_err(|_| {
            let _ = fs::remove_file(&draft);
        })
    }

    /// Makes a directory and those above it; one that is there, or a link to one, stays as it is.
    pub(super) fn directory(&self, path: &str, mode: u32) -> io::Result<()> {
        let path = self.path(path);
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))
    }

    pub(super) fn set_mode(&self, path: &str, mode: u32) -> io::Result<()> {
        fs::set_permissions(self.path(path), Permissions::from_mode(mode))
    }

    /// Removes a file or link; no directory.
    pub(super) fn remove(&self, path: &str) -> io::Result<()> {
        remove(&self.path(path))
    }

    /// Makes a link in place of a file or link.
    pub(super) fn link(&self, path: &str, target: PathBuf) -> io::Result<()> {
        self.remove(path)?;
        symlink(target, self.path(path))
    }

    /// Whether this is a program, maybe behind links.
    pub(super) fn is_program(&self, path: &str) -> bool {
        let metadata = fs::metadata(self.path(path));
        metadata.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    }

    /// Lets everyone write in a directory and all below it, and run what is a program. Not those
    /// that run as someone else.
    pub(super) fn open_to_all(&self, path: &str) -> io::Result<()> {
        self.set_mode(path, 0o777)?;
        walk(&self.path(path), 0, &mut |path, metadata| {
            let mode = metadata.permissions().mode() & 0o7777;
            let run = if metadata.is_dir() || mode & 0o111 != 0 { 0o111 } else { 0 };
            match mode | 0o666 | run {
                new if new == mode || metadata.is_symlink() => Ok(()),
                _ if metadata.is_file() && mode & 0o6000 != 0 => Ok(()),
                new => fs::set_permissions(path, Permissions::from_mode(new)),
            }
        })
    }

    /// Copies what is in a directory to another, where it is not there yet, for an owner.
    pub(super) fn copy(&self, from: &str, to: &str, owner: (u32, u32)) -> io::Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        if !from.is_dir() {
            return Ok(());
        }
        walk(&from, 0, &mut |path, metadata| {
            let Ok(rest) = path.strip_prefix(&from) else { return Ok(()) };
            let target = to.join(rest);
            if fs::symlink_metadata(&target).is_ok() {
                return Ok(());
            }
            if metadata.is_dir() {
                fs::create_dir(&target)?;
                fs::set_permissions(&target, metadata.permissions())?;
            } else if metadata.is_symlink() {
                symlink(fs::read_link(path)?, &target)?;
            } else if metadata.is_file() {
                fs::copy(path, &target)?;
            } else {
                return Ok(());
            }
            std::os::unix::fs::lchown(&target, Some(owner.0), Some(owner.1))
        })
    }
}

/// Text that ends with a line's end, if it is not empty.
pub(super) fn line_end(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Calls `each` with everything below a directory, and with a directory before what is in it. Links
/// are not followed.
fn walk(
    directory: &Path,
    depth: usize,
    each: &mut impl FnMut(&Path, &fs::Metadata) -> io::Result<()>,
) -> io::Result<()> {
    if depth > DEEPEST {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        each(&entry.path(), &metadata)?;
        if metadata.is_dir() {
            walk(&entry.path(), depth + 1, each)?;
        }
    }
    Ok(())
}
