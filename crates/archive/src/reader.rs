//! The entries of an archive.

use std::io::{self, Read};

use crate::{
    Entry, Error, Kind, Result,
    header::{self, BLOCK, Block, type_of},
    invalid,
    pax::{self, Records},
    sparse,
};

/// Long names and attributes of one entry: more is not held in memory. The largest attribute that
/// Linux has is 64 KiB.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// An archive that is read from its beginning. Reading from it reads the data of the entry that
/// [`next`](Self::next) returned last.
#[derive(Debug)]
pub struct Archive<R> {
    source: R,
    /// Of the present entry's data what has not been read.
    data: u64,
    /// What fills its last block.
    padding: u64,
    /// Whether anything has been read.
    begun: bool,
}

/// What the entries before one say of it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Records,
}

impl<R: Read> Archive<R> {
    /// An archive without compression.
    pub fn new(source: R) -> Self {
        Self { source, data: 0, padding: 0, begun: false }
    }

    /// The next entry; none at the end. What the last one has left is skipped.
    ///
    /// # Errors
    /// [`Error`]; the archive cannot be read on.
    #[expect(clippy::should_implement_trait, reason = "an iterator could not be read from")]
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(block) = self.header()? else { return Ok(None) };
            let entry = header::parse(&block)?;
            self.expect(entry.stored);
            match type_of(&block) {
                b'x' | b'X' => extensions.records = pax::records(&self.extension()?)?,
                b'L' => extensions.path = Some(header::text(&self.extension()?).to_vec()),
                b'K' => extensions.link = Some(header::text(&self.extension()?).to_vec()),
                // For all entries that follow: a comment, as git writes it.
                b'g' => {}
                _ => return self.finish(entry, extensions, &block).map(Some),
            }
        }
    }

    /// Reads to the end of the source, so that what checks it there has seen all of it.
    ///
    /// # Errors
    /// Those of the source.
    pub fn drain(mut self) -> io::Result<()> {
        io::copy(&mut self.source, &mut io::sink()).map(drop)
    }

    fn finish(&mut self, mut entry: Entry, with: Extensions, block: &Block) -> Result<Entry> {
        let is_gnu_sparse = entry.sparse.is_some();
        let mut more = is_gnu_sparse && sparse::continues(block, true);
        while more {
            let mut block = [0; BLOCK];
            self.source.read_exact(&mut block)?;
            sparse::go_on(&mut entry, &block)?;
            more = sparse::continues(&block, false);
        }
        entry.path = with.path.unwrap_or(entry.path);
        entry.link = with.link.unwrap_or(entry.link);
        let map_in_data = pax::apply(&mut entry, with.records)?;
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return invalid("a name holds a NUL byte");
        }
        if matches!(entry.kind, Kind::File) && entry.path.ends_with(b"/") {
            entry.kind = Kind::Directory;
        }
        self.expect(entry.stored);
        if map_in_data {
            let extents = self.map()?;
            entry.stored = self.data;
            entry.sparse = entry.sparse.map(|(size, _)| (size, extents));
        }
        sparse::check(&entry)?;
        Ok(entry)
    }

    fn expect(&mut self, stored: u64) {
        self.data = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
    }

    /// A block that is not zero; none at the end.
    fn header(&mut self) -> Result<Option<Block>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                // Some writers leave out the blocks that say that an archive ends.
                Ok(0) if filled == 0 && self.begun => return Ok(None),
                Ok(0) if filled == 0 => return invalid("it is empty"),
                Ok(0) if !self.begun => return invalid("it is not a tar archive"),
                Ok(0) => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.begun = true;
        Ok(block.iter().any(|byte| *byte != 0).then_some(block))
    }

    fn skip(&mut self) -> Result<()> {
        let rest = u128::from(self.data) + u128::from(self.padding);
        let Ok(rest) = u64::try_from(rest) else { return invalid("an entry is too large") };
        if io::copy(&mut self.source.by_ref().take(rest), &mut io::sink())? != rest {
            return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        self.expect(0);
        Ok(())
    }

    /// All data of an entry that says something of the next one.
    fn extension(&mut self) -> Result<Vec<u8>> {
        if self.data > LONGEST_EXTENSION {
            return invalid("the names or attributes of an entry are too long");
        }
        let mut data = Vec::new();
        self.read_to_end(&mut data)?;
        Ok(data)
    }

    /// The map that begins the data of a sparse file, and fills blocks.
    fn map(&mut self) -> Result<Vec<crate::Extent>> {
        let before = self.data;
        let extents = sparse::map(|| {
            let mut line = Vec::new();
            let mut byte = [0];
            while line.len() < 20 {
                self.read_exact(&mut byte)?;
                if byte[0] == b'\n' {
                    return Ok(line);
                }
                line.push(byte[0]);
            }
            invalid("a sparse file has a malformed map")
        })?;
        let rest = (before - self.data).wrapping_neg() % BLOCK as u64;
        if io::copy(&mut self.by_ref().take(rest), &mut io::sink())? != rest {
            return invalid("a sparse file has a malformed map");
        }
        Ok(extents)
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let length = self.source.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= length as u64;
        Ok(length)
    }
}
