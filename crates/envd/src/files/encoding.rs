//! Content codings: which one a download gets, and taking gzip off an upload.

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};
use http::{HeaderMap, header};

/// How a body is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// As it is.
    Identity,
    /// Compressed with gzip.
    Gzip,
}

/// The client takes neither coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("error parsing Accept-Encoding: no acceptable encoding found, supported: [gzip]")]
pub struct NotAcceptable;

/// Chooses the coding of a download from `Accept-Encoding`; `plain` means that only identity will
/// do. Of two that the client likes alike gzip wins; `*` stands for identity where it may.
///
/// # Errors
/// [`NotAcceptable`], when the client has ruled out all there is.
pub fn negotiate(headers: &HeaderMap, plain: bool) -> Result<Coding, NotAcceptable> {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for entry in value.to_str().unwrap_or_default().split(',') {
            let mut fields = entry.split(';');
            let coding = fields.next().unwrap_or_default().trim().to_ascii_lowercase();
            let Some(quality) = quality(fields) else { continue };
            match coding.as_str() {
                "gzip" | "x-gzip" => gzip = Some(quality),
                "identity" => identity = Some(quality),
                "*" => any = Some(quality),
                _ => {}
            }
        }
    }
    // Identity is acceptable unless ruled out, by name or by a star.
    let plain_allowed = identity.or(any).is_none_or(|quality| quality > 0.0);
    let gzip_quality = match gzip {
        Some(quality) => quality,
        None if plain_allowed => 0.0,
        None => any.unwrap_or(0.0),
    };
    if !plain && gzip_quality > 0.0 && gzip_quality >= identity.unwrap_or(0.0) {
        Ok(Coding::Gzip)
    } else if plain_allowed {
        Ok(Coding::Identity)
    } else {
        Err(NotAcceptable)
    }
}

/// The `q` among the parameters of an entry, 1 without one; `None` when it is no number from 0
/// to 1.
fn quality<'a>(mut parameters: impl Iterator<Item = &'a str>) -> Option<f32> {
    let value = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then_some(value.trim())
    });
    match value {
        None => Some(1.0),
        Some(value) => value.parse().ok().filter(|quality| (0.0..=1.0).contains(quality)),
    }
}

/// Compresses what a reader gives, piece by piece.
pub struct Gzip<R> {
    reader: R,
    /// Gone once the end has been written.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<R: Read> Gzip<R> {
    /// Compresses all of `reader`, for speed rather than size.
    pub fn new(reader: R) -> Self {
        Self { reader, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }

    /// Reads up to `size` bytes and compresses them. The answer may be empty when the encoder
    /// needs more; `None` is the end. Blocking.
    ///
    /// # Errors
    /// What the reader says.
    pub fn next(&mut self, size: u64) -> io::Result<Option<Bytes>> {
        let Some(encoder) = &mut self.encoder else { return Ok(None) };
        if io::copy(&mut (&mut self.reader).take(size), encoder)? > 0 {
            return Ok(Some(Bytes::from(std::mem::take(encoder.get_mut()))));
        }
        match self.encoder.take() {
            Some(encoder) => Ok(Some(Bytes::from(encoder.finish()?))),
            None => Ok(None),
        }
    }
}

/// Takes gzip off a body as it arrives.
pub struct Gunzip(MultiGzDecoder<Vec<u8>>);

impl Gunzip {
    /// Compressed bytes to give at a time, so that the answer stays near 4 MiB at most: deflate
    /// packs a thousandfold.
    pub const STEP: usize = 4 << 10;

    /// A decoder at the start of a body.
    #[expect(clippy::new_without_default, reason = "a default decoder would mean nothing")]
    pub fn new() -> Self {
        Self(MultiGzDecoder::new(Vec::new()))
    }

    /// Decodes at most [`Self::STEP`] bytes off the front of `input`. The answer may be empty.
    ///
    /// # Errors
    /// When the input is no gzip.
    pub fn decode(&mut self, input: &mut Bytes) -> io::Result<Bytes> {
        let mut step = input.split_to(input.len().min(Self::STEP));
        while !step.is_empty() {
            let taken = self.0.write(&step)?;
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            drop(step.split_to(taken));
        }
        Ok(Bytes::from(std::mem::take(self.0.get_mut())))
    }

    /// Takes what is left when the input is over.
    ///
    /// # Errors
    /// When the input broke off.
    pub fn finish(&mut self) -> io::Result<Bytes> {
        self.0.try_finish()?;
        Ok(Bytes::from(std::mem::take(self.0.get_mut())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn choose(accepted: &str, plain: bool) -> Result<Coding, NotAcceptable> {
        let value = http::HeaderValue::from_str(accepted).unwrap();
        negotiate(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, value)]), plain)
    }

    // Rules: GET-6, GET-9
    #[test]
    fn the_clients_favourite_wins() {
        use Coding::{Gzip, Identity};
        for (accepted, expected) in [
            ("gzip, deflate", Ok(Gzip)),
            ("gzip, deflate, br, zstd", Ok(Gzip)),
            ("GZIP", Ok(Gzip)),
            ("identity, gzip", Ok(Gzip)),
            ("identity, gzip;q=0.5", Ok(Identity)),
            ("gzip;q=0.5", Ok(Gzip)),
            ("gzip;q=0", Ok(Identity)),
            ("gzip; q=nonsense", Ok(Identity)),
            ("br", Ok(Identity)),
            ("", Ok(Identity)),
            ("*", Ok(Identity)),
            ("identity;q=0, *", Ok(Gzip)),
            ("*;q=0", Err(NotAcceptable)),
            ("identity;q=0", Err(NotAcceptable)),
            ("identity;q=0, gzip;q=0", Err(NotAcceptable)),
            ("gzip, *;q=0", Ok(Gzip)),
            ("identity, *;q=0", Ok(Identity)),
        ] {
            assert_eq!(choose(accepted, false), expected, "{accepted}");
        }
        assert_eq!(negotiate(&HeaderMap::new(), false), Ok(Identity));
    }

    // Rules: GET-8
    #[test]
    fn only_identity_will_do_for_ranges() {
        assert_eq!(choose("gzip, deflate", true), Ok(Coding::Identity));
        assert_eq!(choose("gzip, identity;q=0", true), Err(NotAcceptable));
    }

    fn zip(content: &[u8]) -> Vec<u8> {
        let mut encoder = Gzip::new(content);
        let mut packed = Vec::new();
        while let Some(piece) = encoder.next(1000).unwrap() {
            packed.extend_from_slice(&piece);
        }
        packed
    }

    fn unzip(packed: &[u8], size: usize) -> io::Result<Vec<u8>> {
        let mut decoder = Gunzip::new();
        let mut content = Vec::new();
        for piece in packed.chunks(size.max(1)) {
            let mut piece = Bytes::copy_from_slice(piece);
            while !piece.is_empty() {
                content.extend_from_slice(&decoder.decode(&mut piece)?);
            }
        }
        content.extend_from_slice(&decoder.finish()?);
        Ok(content)
    }

    #[test]
    fn a_bomb_goes_off_in_small_steps() {
        let mut packed = Bytes::from(zip(&vec![0; 64 << 20]));
        let mut decoder = Gunzip::new();
        let mut total = 0;
        while !packed.is_empty() {
            let piece = decoder.decode(&mut packed).unwrap();
            assert!(piece.len() <= 5 << 20, "{} bytes at once", piece.len());
            total += piece.len();
        }
        assert_eq!(total + decoder.finish().unwrap().len(), 64 << 20);
    }

    #[test]
    fn what_is_no_gzip_is_an_error() {
        assert!(unzip(b"plain text, nothing packed", 100).is_err());
        let packed = zip(b"content");
        assert!(unzip(&packed[..packed.len() - 1], 100).is_err());
        assert!(unzip(&[], 100).is_err());
    }

    proptest! {
        #[test]
        fn content_survives_packing(
            content in prop::collection::vec(any::<u8>(), 0..20_000),
            size in 1_usize..5_000,
        ) {
            prop_assert_eq!(unzip(&zip(&content), size).unwrap(), content);
        }
    }
}
