//! An end to what expands without one.

use std::io::{self, Read};

/// There is more than may be.
#[derive(Debug, thiserror::Error)]
#[error("the archive expands to more than {0} bytes")]
pub struct TooLarge(pub u64);

/// Reads so many bytes, and fails with [`TooLarge`] where there are more.
#[derive(Debug)]
pub struct Limited<R> {
    source: R,
    left: u64,
    limit: u64,
}

impl<R> Limited<R> {
    /// Reads at most `limit` bytes of `source`.
    pub fn new(source: R, limit: u64) -> Self {
        Self { source, left: limit, limit }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        match self.left.checked_sub(length as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(TooLarge(self.limit))),
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_as_may_be_is_read_and_no_more() {
        let read = |limit| {
            let mut all = Vec::new();
            Limited::new(&b"12345"[..], limit).read_to_end(&mut all).map(|_| all)
        };
        assert_eq!(read(5).unwrap(), b"12345");
        let error = read(4).unwrap_err();
        assert!(error.get_ref().is_some_and(|error| error.is::<TooLarge>()), "{error}");
    }
}
