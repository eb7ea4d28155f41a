//! API keys and access tokens (control-plane contract, section 2.3).
//!
//! A key is a prefix and lower-case hexadecimal. What is stored is a hash over the *decoded* bytes,
//! so a leaked database holds no key.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

/// Prefix of a team's API key.
pub const API_KEY_PREFIX: &str = "e2b_";
/// Prefix of a user's access token.
pub const ACCESS_TOKEN_PREFIX: &str = "sk_e2b_";

/// Why a presented key cannot be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The prefix is not the one expected here.
    #[error("the key does not start with the expected prefix")]
    Prefix,
    /// What follows the prefix is not hexadecimal of even length.
    #[error("the key is not hexadecimal after its prefix")]
    Format,
}

/// A new raw key: `prefix` and 40 hexadecimal characters.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn generate(prefix: &str) -> Result<String, getrandom::Error> {
    let mut bytes = [0u8; 20];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{prefix}{}", hex::encode(bytes)))
}

/// The stored form of `raw`: `$sha256$` and unpadded base64 of SHA-256 over the decoded bytes.
///
/// # Errors
/// [`KeyError`] when `raw` cannot be a key of this prefix.
pub fn hash(prefix: &str, raw: &str) -> Result<String, KeyError> {
    let value = raw.strip_prefix(prefix).ok_or(KeyError::Prefix)?;
    if value.is_empty() {
        return Err(KeyError::Format);
    }
    let bytes = hex::decode(value).map_err(|_| KeyError::Format)?;
    Ok(format!("$sha256${}", STANDARD_NO_PAD.encode(Sha256::digest(bytes))))
}

/// What may be shown of a key: enough to tell two apart, not enough to use one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// The key's prefix, such as `e2b_`.
    pub prefix: String,
    /// Characters behind the prefix.
    pub value_length: usize,
    /// First characters behind the prefix (two, fewer for short values).
    pub masked_value_prefix: String,
    /// Last four characters.
    pub masked_value_suffix: String,
}

impl Mask {
    /// The mask of `raw`.
    ///
    /// # Errors
    /// [`KeyError`] when the prefix is missing or the value is of four characters or fewer.
    pub fn of(prefix: &str, raw: &str) -> Result<Self, KeyError> {
        let value = raw.strip_prefix(prefix).ok_or(KeyError::Prefix)?;
        if value.len() <= 4 || !value.is_ascii() {
            return Err(KeyError::Format);
        }
        let shown = (value.len() - 4).min(2);
        Ok(Self {
            prefix: prefix.to_owned(),
            value_length: value.len(),
            masked_value_prefix: value[..shown].to_owned(),
            masked_value_suffix: value[value.len() - 4..].to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors() {
        assert_eq!(
            hash(API_KEY_PREFIX, "e2b_53ae1fed82754c17ad8077fbc8bcdd90").unwrap(),
            "$sha256$RLrLQtatBzJCfetucGulV+lw+EZ/YXV1/3LBxlsAXYk"
        );
        assert_eq!(
            hash(ACCESS_TOKEN_PREFIX, "sk_e2b_89215020937a4c989cde33d7bc647715").unwrap(),
            "$sha256$wfnRCUXfDM3oHtm8Y/FiQ3UV+NKl0zS0qOTH6tUF1Bk"
        );
    }

    #[test]
    fn malformed_keys_say_which_way() {
        assert_eq!(hash(API_KEY_PREFIX, "sk_e2b_00"), Err(KeyError::Prefix));
        for bad in ["e2b_", "e2b_abc", "e2b_zz", "e2b_0g", "e2b_é"] {
            assert_eq!(hash(API_KEY_PREFIX, bad), Err(KeyError::Format), "{bad}");
        }
    }

    #[test]
    fn generated_keys_hash_and_mask() {
        let key = generate(API_KEY_PREFIX).unwrap();
        assert_eq!(key.len(), 44);
        assert!(hash(API_KEY_PREFIX, &key).is_ok());
        let mask = Mask::of(API_KEY_PREFIX, &key).unwrap();
        assert_eq!((mask.value_length, mask.masked_value_prefix.len()), (40, 2));
        assert_eq!(mask.masked_value_suffix, key[40..]);
        assert_eq!(Mask::of(API_KEY_PREFIX, "e2b_12345").unwrap().masked_value_prefix, "1");
        assert!(Mask::of(API_KEY_PREFIX, "e2b_1234").is_err());
    }
}
