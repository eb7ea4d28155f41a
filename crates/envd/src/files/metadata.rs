//! A file's user metadata: `X-Metadata-<key>` headers of an upload, kept as extended attributes
//! `user.e2b.<key>`.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use http::HeaderMap;
use rustix::buffer::spare_capacity;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Keys (lower case) and values.
pub type Metadata = BTreeMap<String, String>;

const HEADER_PREFIX: &str = "x-metadata-";
const XATTR_PREFIX: &str = "user.e2b.";

/// A kernel limit: an attribute's name has at most 255 bytes.
const MAX_KEY: usize = 255 - XATTR_PREFIX.len();
/// What ext4 keeps of all attributes of a file, so what every client may count on.
const MAX_TOTAL: usize = 4096;
/// A kernel limit: the names of all attributes of a file, and the value of one.
const MAX_XATTR: usize = 64 << 10;

/// Why the metadata of an upload cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// A value with other characters than printable ASCII.
    #[error("invalid metadata: value of '{0}' is not printable ASCII")]
    NotPrintable(String),
    /// A key of more than 246 bytes.
    #[error("invalid metadata: a key is longer than {MAX_KEY} bytes")]
    KeyTooLong,
    /// All of it together.
    #[error("invalid metadata: keys and values take more than {MAX_TOTAL} bytes")]
    TooMuch,
}

/// Takes the metadata from the headers of an upload. Of several values for a key the first counts.
///
/// # Errors
/// [`MetadataError`], for the client to read.
pub fn from_headers(headers: &HeaderMap) -> Result<Metadata, MetadataError> {
    let mut metadata = Metadata::new();
    let mut total = 0;
    // A header's name is lower case and printable by its type.
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix(HEADER_PREFIX).filter(|key| !key.is_empty())
        else {
            continue;
        };
        if key.len() > MAX_KEY {
            return Err(MetadataError::KeyTooLong);
        }
        let value = headers
            .get(name)
            .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
            .filter(|value| value.bytes().all(|byte| matches!(byte, 0x20..=0x7e)))
            .ok_or_else(|| MetadataError::NotPrintable(key.to_owned()))?;
        total += XATTR_PREFIX.len() + key.len() + value.len();
        metadata.insert(key.to_owned(), value.to_owned());
    }
    if total > MAX_TOTAL {
        return Err(MetadataError::TooMuch);
    }
    Ok(metadata)
}

/// Makes `metadata` all the metadata the file has. Where there is nothing to change no attribute
/// is touched, since watchers would see it. A file system without attributes keeps none.
///
/// # Errors
/// What the system says, above all when the attributes do not fit.
pub fn replace<Fd: AsFd>(file: Fd, metadata: &Metadata) -> io::Result<()> {
    let names = match list(|buffer| rustix::fs::flistxattr(&file, spare_capacity(buffer))) {
        Ok(names) => names,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for key in keys(&names).filter(|key| !metadata.contains_key(*key)) {
        match rustix::fs::fremovexattr(&file, format!("{XATTR_PREFIX}{key}")) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (key, value) in metadata {
        let name = format!("{XATTR_PREFIX}{key}");
        match rustix::fs::fsetxattr(&file, name, value.as_bytes(), XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOTSUP) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads the metadata of what `path` leads to. What cannot be read, or is no text, is left out.
pub fn read(path: &Path) -> Metadata {
    // Most files have no attribute at all: this spares them the buffer.
    if rustix::fs::listxattr_query(path).unwrap_or(0) == 0 {
        return Metadata::new();
    }
    let names =
        list(|buffer| rustix::fs::listxattr(path, spare_capacity(buffer))).unwrap_or_default();
    let mut value = Vec::with_capacity(MAX_XATTR);
    keys(&names)
        .filter_map(|key| {
            value.clear();
            let name = format!("{XATTR_PREFIX}{key}");
            rustix::fs::getxattr(path, name, spare_capacity(&mut value)).ok()?;
            Some((key.to_owned(), std::str::from_utf8(&value).ok()?.to_owned()))
        })
        .collect()
}

fn list(fill: impl FnOnce(&mut Vec<u8>) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut names = Vec::with_capacity(MAX_XATTR);
    fill(&mut names)?;
    Ok(names)
}

/// The metadata keys among NUL-terminated attribute names.
fn keys(names: &[u8]) -> impl Iterator<Item = &str> {
    names
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok()?.to_str().ok())
        .filter_map(|name| name.strip_prefix(XATTR_PREFIX))
        .filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value).unwrap(),
            );
        }
        headers
    }

    // Rules: PUT-10, TRAP-30
    #[test]
    fn keys_are_lower_case_and_the_first_value_counts() {
        let headers = headers(&[
            ("X-Metadata-Author", b"ada"),
            ("x-metadata-AUTHOR", b"bob"),
            ("X-Metadata-", b"no key"),
            ("X-Metadata-empty", b""),
            ("X-Other", b"x"),
        ]);
        let expected =
            Metadata::from([("author".into(), "ada".into()), ("empty".into(), String::new())]);
        assert_eq!(from_headers(&headers), Ok(expected));
    }

    // Rules: PUT-11, TRAP-30
    #[test]
    fn what_does_not_fit_is_refused() {
        let bad = |name: &str, value: &[u8]| from_headers(&headers(&[(name, value)])).unwrap_err();
        assert!(matches!(bad("x-metadata-a", "é".as_bytes()), MetadataError::NotPrintable(_)));
        assert!(matches!(bad("x-metadata-a", b"a\tb"), MetadataError::NotPrintable(_)));
        let long = format!("x-metadata-{}", "k".repeat(247));
        assert_eq!(bad(&long, b""), MetadataError::KeyTooLong);
        assert!(from_headers(&headers(&[(&long[..long.len() - 1], b"")])).is_ok());

        // 9 for the attribute's prefix and 1 for the key.
        let fits = vec![b'v'; 4096 - 10];
        assert!(from_headers(&headers(&[("x-metadata-a", &fits)])).is_ok());
        let too_much = vec![b'v'; 4096 - 9];
        assert_eq!(bad("x-metadata-a", &too_much), MetadataError::TooMuch);
    }

    // Rules: PUT-12
    #[test]
    fn replacing_leaves_nothing_of_the_old_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        rustix::fs::fsetxattr(&file, "user.other", b"kept", XattrFlags::empty()).unwrap();
        let first = Metadata::from([("a".into(), "1".into()), ("b".into(), "2".into())]);
        replace(&file, &first).unwrap();
        assert_eq!(read(&path), first);

        let second = Metadata::from([("b".into(), "3".into())]);
        replace(&file, &second).unwrap();
        assert_eq!(read(&path), second);

        replace(&file, &Metadata::new()).unwrap();
        assert_eq!(read(&path), Metadata::new());
        let mut value = [0; 8];
        assert_eq!(rustix::fs::fgetxattr(&file, "user.other", &mut value), Ok(4));
    }
}
