//! The tokens a sandbox is reached with (control-plane contract, section 15.6), and signatures of
//! addresses to upload to (section 10.3).
//!
//! They are derived from the deployment's seed and what they are for, so they need no storage and
//! stay the same over restarts.

use atoll_core::{Error, Result, SandboxId, error::codes};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// What envd of `sandbox` accepts as `X-Access-Token`: lower-case hexadecimal HMAC-SHA256 of the id.
///
/// # Errors
/// None in practice: HMAC takes keys of any length.
pub(crate) fn envd_access_token(seed: &[u8], sandbox: &SandboxId) -> Result<String> {
    digest(seed, sandbox.as_str())
}

/// Lets whoever has it upload the files `hash` of `team` until `expires` (Unix seconds).
///
/// # Errors
/// As [`envd_access_token`].
pub(crate) fn upload_signature(
    seed: &[u8],
    team: &str,
    hash: &str,
    expires: i64,
) -> Result<String> {
    // No sandbox's id has a line break: none of its tokens is a signature.
    digest(seed, &format!("upload\n{team}\n{hash}\n{expires}"))
}

/// Compares in a time that does not depend on where two texts differ.
pub(crate) fn equal(expected: &str, presented: &str) -> bool {
    expected.as_bytes().ct_eq(presented.as_bytes()).into()
}

fn digest(seed: &[u8], text: &str) -> Result<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(seed)
        .map_err(|error| Error::new(codes::INTERNAL, format!("the token seed: {error}.")))?;
    mac.update(text.as_bytes());
    Ok(hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vector() {
        let sandbox = "i1234567890abcdefghij".parse().unwrap();
        assert_eq!(
            envd_access_token(b"testseed", &sandbox).unwrap(),
            "28c3bf122ee700ec7a9d4fb932c8582eaa274e91026b1818203e5932ff585345"
        );
    }
}
