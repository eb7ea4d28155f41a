//! Unguessable names.

use std::fmt::Write;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// 32 random hexadecimal digits.
///
/// # Errors
/// When the kernel's generator is not ready, or out of reach.
pub fn hex() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if filled != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_differ() {
        let (one, other) = (super::hex().unwrap(), super::hex().unwrap());
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
    }
}
