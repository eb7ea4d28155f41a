//! Which compression an archive has, and what is in it.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Frames to be skipped begin with any of the sixteen from this one.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// What is read from a compressed archive at once.
const BUFFER: usize = 256 << 10;
/// Memory that a zstd frame may ask for: what `zstd --long` writes, and every decoder accepts.
const LARGEST_WINDOW: u64 = 128 << 20;

/// The content of `source`, which is gzip, zstd, or not compressed.
///
/// # Errors
/// Those of `source`.
pub fn decompress<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = source;
    let mut first = Vec::new();
    source.by_ref().take(ZSTD.len() as u64).read_to_end(&mut first)?;
    let compression = first.clone();
    let source = BufReader::with_capacity(BUFFER, Cursor::new(first).chain(source));
    Ok(if compression.starts_with(&GZIP) {
        Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(source)))
    } else if compression == ZSTD || compression.get(1..) == Some(&ZSTD_SKIPPABLE) {
        Box::new(Zstd { source, decoder: decoder(), within: false })
    } else {
        Box::new(source)
    })
}

fn decoder() -> FrameDecoder {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(LARGEST_WINDOW);
    decoder
}

/// One frame after the other: writers split an archive so that it can be compressed in parallel, and
/// put tables into frames to be skipped.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    within: bool,
}

impl<R: BufRead> Zstd<R> {
    /// Begins the next frame; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => self.skip(u64::from(length))?,
                Err(error) => return Err(damaged(error)),
            }
        }
        Ok(false)
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
        if skipped == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy::UptoBlocks;
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.within && !self.decoder.is_finished() {
                self.decoder.decode_blocks(&mut self.source, UptoBlocks(1)).map_err(damaged)?;
                continue;
            }
            if self.within {
                check(&self.decoder)?;
            }
            self.within = self.next_frame()?;
            if !self.within {
                return Ok(0);
            }
        }
    }
}

/// The checksum of a finished frame, where it has one.
fn check(decoder: &FrameDecoder) -> io::Result<()> {
    match (decoder.get_checksum_from_data(), decoder.get_calculated_checksum()) {
        (Some(stored), Some(found)) if stored != found => Err(damaged("its checksum is wrong")),
        _ => Ok(()),
    }
}

fn damaged(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged zstd data: {why}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn content(compressed: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decompress(compressed)?.read_to_end(&mut content)?;
        Ok(content)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        compress_to_vec(text, CompressionLevel::Fastest)
    }

    #[test]
    fn all_members_and_frames_are_read() {
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        for compressed in [
            b"one two".to_vec(),
            [gzip(b"one "), gzip(b"two")].concat(),
            [zstd(b"one "), skipped.clone(), zstd(b"two"), skipped.clone()].concat(),
            [skipped, zstd(b"one two")].concat(),
        ] {
            assert_eq!(content(&compressed).unwrap(), b"one two");
        }
        assert_eq!(content(b"").unwrap(), b"");
    }

    #[test]
    fn what_is_cut_or_damaged_is_an_error() {
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        for compressed in [gzip(&text), zstd(&text)] {
            assert_eq!(content(&compressed).unwrap(), text);
            for length in [5, compressed.len() / 2, compressed.len() - 1] {
                assert!(content(&compressed[..length]).is_err(), "{length}");
            }
        }
        let mut damaged = gzip(&text);
        let last = damaged.len() - 6;
        damaged[last] ^= 1;
        assert!(content(&damaged).is_err());
    }
}
