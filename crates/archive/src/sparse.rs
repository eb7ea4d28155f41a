//! Files with holes: where their data goes.
//!
//! There are four ways to write this down: GNU's old headers, and three generations of PAX records.

use crate::{
    Entry, Result,
    header::{Block, unsigned},
    invalid,
    pax::{decimal, extents},
};

/// A file with more pieces is not believed.
const MOST_EXTENTS: usize = 1 << 16;

/// A piece of a file that is not a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

/// What GNU's old header says: the size and the first pieces.
pub(crate) fn begin(block: &Block) -> Result<(u64, Vec<Extent>)> {
    Ok((unsigned(&block[483..495])?, pieces(&block[386..482])?))
}

/// Whether a block with more pieces follows the header, or such a block.
pub(crate) fn continues(block: &Block, is_header: bool) -> bool {
    block[if is_header { 482 } else { 504 }] != 0
}

/// Takes in a block with more pieces.
pub(crate) fn go_on(entry: &mut Entry, block: &Block) -> Result<()> {
    let Some((_, extents)) = &mut entry.sparse else { return Ok(()) };
    extents.extend(pieces(&block[..504])?);
    if extents.len() > MOST_EXTENTS {
        return invalid("a sparse file has too many pieces");
    }
    Ok(())
}

fn pieces(table: &[u8]) -> Result<Vec<Extent>> {
    table
        .chunks_exact(24)
        .take_while(|piece| piece[0] != 0)
        .map(|piece| {
            let (offset, length) = piece.split_at(12);
            Ok(Extent { offset: unsigned(offset)?, length: unsigned(length)? })
        })
        .collect()
}

/// The PAX records of a sparse file.
#[derive(Default)]
pub(crate) struct Records {
    /// The file's name: that of the entry is another, for programs that know nothing of this.
    pub(crate) name: Option<Vec<u8>>,
    /// The map begins the data.
    pub(crate) in_data: bool,
    size: Option<u64>,
    numbers: Vec<u64>,
}

impl Records {
    /// Takes a record in. None if it is malformed; those it does not know are not.
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"GNU.sparse.name" => self.name = Some(value.to_vec()),
            b"GNU.sparse.major" => self.in_data = decimal::<u8>(value)? == 1,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.size = Some(decimal(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.numbers.push(decimal(value)?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').map(decimal);
                self.numbers = numbers.take(2 * MOST_EXTENTS + 1).collect::<Option<_>>()?;
            }
            _ => {}
        }
        Some(())
    }

    pub(crate) fn is_sparse(&self) -> bool {
        self.size.is_some()
    }

    pub(crate) fn size(&self) -> Result<u64> {
        self.size.map_or_else(|| invalid("a sparse file has no size"), Ok)
    }

    pub(crate) fn extents(&self) -> Result<Vec<Extent>> {
        if self.numbers.len() > 2 * MOST_EXTENTS || !self.numbers.len().is_multiple_of(2) {
            return invalid("a sparse file has a malformed map");
        }
        Ok(extents(&self.numbers))
    }
}

/// Reads a map that begins the data, number by number, with `line`, which gives a line.
pub(crate) fn map(mut line: impl FnMut() -> Result<Vec<u8>>) -> Result<Vec<Extent>> {
    let mut next = || match decimal::<u64>(&line()?) {
        Some(number) => Ok(number),
        None => invalid("a sparse file has a malformed map"),
    };
    let count = next()?;
    if count > MOST_EXTENTS as u64 {
        return invalid("a sparse file has too many pieces");
    }
    let numbers: Vec<u64> = (0..2 * count).map(|_| next()).collect::<Result<_>>()?;
    Ok(extents(&numbers))
}

/// The pieces must be in order, within the file, and as long as what is stored.
pub(crate) fn check(entry: &Entry) -> Result<()> {
    let Some((size, extents)) = &entry.sparse else { return Ok(()) };
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for Extent { offset, length } in extents {
        let after = offset.checked_add(*length).filter(|after| after <= size && *offset >= end);
        let Some(after) = after else { return invalid("a sparse file has a malformed map") };
        end = after;
        // No overflow: the pieces lie one after the other below `size`.
        sum += length;
    }
    if sum != entry.stored || i64::try_from(*size).is_err() {
        return invalid("a sparse file has a malformed map");
    }
    Ok(())
}
