//! The tokens a sandbox is reached with (control-plane contract, section 15.6).
//!
//! They are derived from the deployment's seed and the sandbox's id, so they need no storage and
//! stay the same over restarts of either.

use atoll_core::{Error, Result, SandboxId, error::codes};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What envd of `sandbox` accepts as `X-Access-Token`: lower-case hexadecimal HMAC-SHA256 of the id.
///
/// # Errors
/// None in practice: HMAC takes keys of any length.
pub(crate) fn envd_access_token(seed: &[u8], sandbox: &SandboxId) -> Result<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(seed)
        .map_err(|error| Error::new(codes::INTERNAL, format!("the token seed: {error}.")))?;
    mac.update(sandbox.as_str().as_bytes());
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
