//! An entry of an archive, and the block of 512 bytes that begins it.

use crate::{Extent, Result, invalid, sparse};

/// What all of an archive is counted in.
pub(crate) const BLOCK: usize = 512;

/// A block.
pub(crate) type Block = [u8; BLOCK];

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// Another name of an earlier entry's file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A device node.
    Device,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Something else, of this type in the header.
    Other(u8),
}

/// An entry of an archive, as it says of itself: nothing of this is to be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it makes.
    pub kind: Kind,
    /// Its name: any bytes but NUL.
    pub path: Vec<u8>,
    /// What a link leads to.
    pub link: Vec<u8>,
    /// Permissions and the bits above them.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// When it was last changed: seconds since 1970 and nanoseconds.
    pub modified: (i64, u32),
    /// Bytes of data that it has in the archive.
    pub stored: u64,
    /// Of a sparse file: its size, and where its data goes.
    pub sparse: Option<(u64, Vec<Extent>)>,
    /// Extended attributes.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The type of an entry in a header.
pub(crate) fn type_of(block: &Block) -> u8 {
    block[156]
}

/// Reads a header, whose checksum must be right.
pub(crate) fn parse(block: &Block) -> Result<Entry> {
    check(block)?;
    let is_ustar = &block[257..263] == b"ustar\0";
    let mut path = text(&block[..100]).to_vec();
    let prefix = text(&block[345..500]);
    if is_ustar && !prefix.is_empty() {
        path = [prefix, b"/", &path].concat();
    }
    let kind = match type_of(block) {
        // Before there was a type for them.
        0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' | b'4' => Kind::Device,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => Kind::Other(other),
    };
    let seconds = number(&block[136..148])?;
    Ok(Entry {
        kind,
        path,
        link: text(&block[157..257]).to_vec(),
        mode: u32::try_from(number(&block[100..108])? & 0o7777).unwrap_or(0),
        uid: unsigned(&block[108..116])?,
        gid: unsigned(&block[116..124])?,
        modified: (seconds, 0),
        // Links and the like may name the size of what they stand for, and have no data.
        stored: if has_data(kind) { unsigned(&block[124..136])? } else { 0 },
        sparse: (type_of(block) == b'S').then(|| sparse::begin(block)).transpose()?,
        attributes: Vec::new(),
    })
}

/// Whether an entry of that kind is followed by data.
pub(crate) fn has_data(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Other(_))
}

/// The sum of a header's bytes, its own field counted as spaces. Some writers took bytes as signed.
fn check(block: &Block) -> Result<()> {
    let stored = number(&block[148..156])?;
    let counted = |index: usize, byte: u8| if (148..156).contains(&index) { b' ' } else { byte };
    let bytes = || block.iter().enumerate().map(|(index, byte)| counted(index, *byte));
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    if stored == unsigned || stored == signed {
        return Ok(());
    }
    invalid("it is not a tar archive, or damaged: the checksum of a header is wrong")
}

/// The text of a field: up to the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number of a field: octal digits, or what GNU writes when they do not suffice.
pub(crate) fn number(field: &[u8]) -> Result<i64> {
    let Some((first, rest)) = field.split_first() else { return Ok(0) };
    if first & 0x80 != 0 {
        let start = if first & 0x40 == 0 { i128::from(first & 0x3f) } else { -1 };
        let wide = rest.iter().try_fold(start, |value, byte| {
            value.checked_mul(256).map(|value| value | i128::from(*byte))
        });
        return match wide.and_then(|value| i64::try_from(value).ok()) {
            Some(value) => Ok(value),
            None => invalid("a number in a header is too large"),
        };
    }
    let digits = text(field).trim_ascii();
    let mut value = 0_i64;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return invalid("it is not a tar archive, or damaged: a header holds no number");
        }
        // Twelve digits at most.
        value = value * 8 + i64::from(digit - b'0');
    }
    Ok(value)
}

/// A number that is none below zero.
pub(crate) fn unsigned(field: &[u8]) -> Result<u64> {
    match u64::try_from(number(field)?) {
        Ok(value) => Ok(value),
        Err(_) => invalid("a size or an owner in a header is below zero"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_spellings() {
        for (field, expected) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ] {
            assert_eq!(number(field).unwrap(), expected, "{field:?}");
        }
        assert!(number(b"0000648\0").is_err());
        assert!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
        assert!(unsigned(b"\xff\xff\xff\xff\xff\xff\xff\xfe").is_err());
    }
}
