//! The archive that a COPY uploads.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Seek},
    os::unix::fs::MetadataExt,
    path::Path,
};

use atoll_core::Result;
use flate2::{Compression, GzBuilder, write::GzEncoder};
use tar::{Builder, EntryType, Header};

use super::{Context, unusable};

type Archive = Builder<GzEncoder<BufWriter<File>>>;

impl Context {
    /// Packs what a source stands for into a file that has no name, to be read from its beginning. The
    /// same files give the same bytes: owners are left out, and times are those of the files.
    ///
    /// # Errors
    /// `INVALID_REQUEST` if something cannot be read, or changes meanwhile.
    pub(in crate::template) fn archive(&self, source: &str) -> Result<File> {
        let temporary = std::env::temp_dir();
        let file = tempfile::tempfile().map_err(|error| unusable(&temporary, &error))?;
        let encoder = GzBuilder::new().write(BufWriter::new(file), Compression::default());
        let mut archive = Builder::new(encoder);
        for relative in self.files(source)? {
            let path = self.root.join(&relative);
            append(&mut archive, &relative, &path).map_err(|error| unusable(&path, &error))?;
        }
        finish(archive).map_err(|error| unusable(&temporary, &error))
    }
}

fn finish(archive: Archive) -> io::Result<File> {
    let buffered = archive.into_inner()?.finish()?;
    let mut file = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}

fn append(archive: &mut Archive, relative: &Path, path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    if metadata.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        return archive.append_link(&mut header, relative, fs::read_link(path)?);
    }
    if metadata.is_dir() {
        header.set_entry_type(EntryType::Directory);
        return archive.append_data(&mut header, relative.join(""), io::empty());
    }
    header.set_entry_type(EntryType::Regular);
    header.set_size(metadata.len());
    let mut content = File::open(path)?.take(metadata.len());
    archive.append_data(&mut header, relative, &mut content)?;
    if content.limit() > 0 {
        return Err(io::Error::other("it became shorter while it was read"));
    }
    Ok(())
}
