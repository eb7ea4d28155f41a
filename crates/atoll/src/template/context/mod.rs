//! The files that COPY copies: found, told apart by a hash, and packed as the published SDKs do, so
//! that what one has uploaded need not be uploaded again.

mod archive;
mod ignore;
mod pattern;

use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use atoll_core::{Error, Result, error::codes};
use sha2::{Digest, Sha256};

use ignore::Ignore;
use pattern::Pattern;

const BUFFER: usize = 1 << 20;

/// The directory that a template is built from.
#[derive(Debug)]
pub(super) struct Context {
    root: PathBuf,
    ignore: Ignore,
}

/// Whether a source is relative and stays below where it starts.
pub(super) fn is_inside(source: &str) -> bool {
    let mut depth = 0_i32;
    !source.starts_with('/')
        && source.split('/').all(|part| {
            depth += match part {
                "" | "." => 0,
                ".." => -1,
                _ => 1,
            };
            depth >= 0
        })
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    let message = format!("{} cannot be read: {error}.", path.display());
    Error::new(codes::INVALID_REQUEST, message).with_fix("Correct it, or list it in .dockerignore.")
}

impl Context {
    /// Opens a directory and reads its `.dockerignore`.
    ///
    /// # Errors
    /// `INVALID_REQUEST` if one cannot be read.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        // Absolute, and without links: what is found is compared with it.
        let root = directory.canonicalize().map_err(|error| unusable(directory, &error))?;
        let path = root.join(".dockerignore");
        let ignore = match fs::read_to_string(&path) {
            Ok(content) => Ignore::new(&content).map_err(|error| {
                Error::new(codes::INVALID_REQUEST, format!(".dockerignore has a line {error}."))
                    .with_fix("Correct that line.")
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ignore::default(),
            Err(error) => return Err(unusable(&path, &error)),
        };
        Ok(Self { root, ignore })
    }

    /// The hash of what COPY of `source` to `destination` copies: of names, modes, sizes and contents.
    /// Owners and times do not count.
    ///
    /// # Errors
    /// `INVALID_REQUEST` if there is nothing to copy or something cannot be read.
    pub(super) fn hash(&self, source: &str, destination: &str) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(format!("COPY {source} {destination}"));
        for relative in self.files(source)? {
            let path = self.root.join(&relative);
            self.hash_one(&relative, &path, &mut hash).map_err(|error| unusable(&path, &error))?;
        }
        Ok(hex::encode(hash.finalize()))
    }

    fn hash_one(&self, relative: &Path, path: &Path, hash: &mut Sha256) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        hash.update(relative.as_os_str().as_bytes());
        hash.update(metadata.mode().to_string());
        // That of a directory is the file system's affair.
        if !metadata.is_dir() {
            hash.update(metadata.size().to_string());
        }
        if metadata.is_symlink() {
            hash.update(fs::read_link(path)?.as_os_str().as_bytes());
        } else if metadata.is_file() {
            let mut file = File::open(path)?;
            let mut buffer = vec![0; BUFFER];
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    count => hash.update(&buffer[..count]),
                }
            }
        }
        Ok(())
    }

    /// What a source stands for, with all below it that is not left out, in the order of their names.
    /// Paths are relative; the directory itself is `.`.
    fn files(&self, source: &str) -> Result<Vec<PathBuf>> {
        let mut found = BTreeSet::new();
        for start in self.expand(source)? {
            let name = start.to_string_lossy();
            if start != Path::new(".") && self.ignore.matches(&name) {
                continue;
            }
            let path = self.root.join(&start);
            let metadata = fs::symlink_metadata(&path).map_err(|error| unusable(&path, &error))?;
            if metadata.is_dir() {
                self.walk(&start, &mut found).map_err(|error| unusable(&path, &error))?;
            }
            if can_be_copied(&metadata) {
                found.insert(start);
            }
        }
        if found.is_empty() {
            let message =
                format!("COPY has nothing to copy: {source:?} is not in {}.", self.root.display());
            return Err(Error::new(codes::INVALID_REQUEST, message)
                .with_fix("Check the path, and whether .dockerignore leaves it out."));
        }
        // As text, not part by part: `a-b` before `a/b`.
        let mut found: Vec<PathBuf> = found.into_iter().collect();
        found.sort_by(|one, other| {
            let is_root = |path: &Path| path != Path::new(".");
            (is_root(one), one.as_os_str()).cmp(&(is_root(other), other.as_os_str()))
        });
        Ok(found)
    }

    /// Adds what is below a directory. Links are not followed.
    fn walk(&self, start: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        let mut pending = vec![start.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(self.root.join(&directory))? {
                let entry = entry?;
                let relative = join(&directory, Path::new(&entry.file_name()));
                let name = relative.to_string_lossy();
                let ignored = self.ignore.matches(&name);
                let metadata = entry.metadata()?;
                if metadata.is_dir() && (!ignored || self.ignore.may_keep_below(&name)) {
                    pending.push(relative.clone());
                }
                if !ignored && can_be_copied(&metadata) {
                    found.insert(relative);
                }
            }
        }
        Ok(())
    }

    /// The paths that a source names or its wildcards match.
    fn expand(&self, source: &str) -> Result<HashSet<PathBuf>> {
        let mut parts: Vec<&str> = Vec::new();
        for part in source.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let mut found = HashSet::from([PathBuf::from(".")]);
        for part in parts {
            let mut next = HashSet::new();
            for directory in &found {
                self.expand_part(directory, part, &mut next)?;
            }
            found = next;
        }
        if source.ends_with('/') {
            found.retain(|path| self.root.join(path).is_dir());
        }
        Ok(found)
    }

    fn expand_part(
        &self,
        directory: &Path,
        part: &str,
        found: &mut HashSet<PathBuf>,
    ) -> Result<()> {
        let path = self.root.join(directory);
        let bad = |error: &dyn std::fmt::Display| {
            let message = format!("a source of COPY has the part {part:?}: {error}.");
            Error::new(codes::INVALID_REQUEST, message).with_fix("Correct it.")
        };
        // Through a link, a path could lead anywhere on this machine.
        if !path.canonicalize().is_ok_and(|real| real.starts_with(&self.root)) {
            return Ok(());
        }
        if !part.contains(['*', '?', '[', '\\']) {
            let relative = join(directory, Path::new(part));
            if fs::symlink_metadata(self.root.join(&relative)).is_ok() {
                found.insert(relative);
            }
            return Ok(());
        }
        if part == "**" {
            let mut below = BTreeSet::new();
            self.directories(directory, &mut below).map_err(|error| unusable(&path, &error))?;
            found.extend(below);
            return Ok(());
        }
        let pattern = Pattern::new(part).map_err(|error| bad(&error))?;
        let Ok(entries) = fs::read_dir(&path) else { return Ok(()) };
        for entry in entries {
            let name = entry.map_err(|error| unusable(&path, &error))?.file_name();
            if pattern.matches(&name.to_string_lossy()) {
                found.insert(join(directory, Path::new(&name)));
            }
        }
        Ok(())
    }

    /// A directory and all directories below it.
    fn directories(&self, start: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        let mut pending = vec![start.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(self.root.join(&directory))? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(join(&directory, Path::new(&entry.file_name())));
                }
            }
            found.insert(directory);
        }
        Ok(())
    }
}

/// Files, directories and links; sockets, pipes and devices mean nothing elsewhere.
fn can_be_copied(metadata: &Metadata) -> bool {
    metadata.is_file() || metadata.is_dir() || metadata.is_symlink()
}

fn join(directory: &Path, name: &Path) -> PathBuf {
    if directory == Path::new(".") { name.to_owned() } else { directory.join(name) }
}

#[cfg(test)]
mod tests;
