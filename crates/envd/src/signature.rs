//! Signed file links: how a browser reads or writes one file without the access token.
//!
//! A link carries `signature` and, if it ends, `signature_expiration` as query parameters. The
//! signature is a hash over what the link allows and the access token, so whoever has the token
//! can make links without asking, and a new token ends them all.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What a link allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `GET /files`.
    Read,
    /// `POST /files`.
    Write,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The signed values, as they stand in the query; an absent one is empty.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Path as sent: neither expanded nor cleaned.
    pub path: &'a str,
    /// What is asked for.
    pub operation: Operation,
    /// User as sent: not the default one.
    pub username: &'a str,
    /// When the link ends, in Unix seconds. The second itself still counts.
    pub expiration: Option<i64>,
}

impl Claim<'_> {
    /// The signature that a link with this claim must carry.
    pub fn sign(&self, token: &str) -> String {
        let Self { path, operation, username, expiration } = self;
        let mut input = format!("{path}:{}:{username}:{token}", operation.as_str());
        if let Some(expiration) = expiration {
            input.push_str(&format!(":{expiration}"));
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(input)))
    }
}

/// Why a file request is not allowed. The texts are part of the wire contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The header decides when it is there, whatever the signature says.
    #[error("access token present in header but does not match")]
    WrongToken,
    /// Neither header nor signature.
    #[error("missing signature query parameter")]
    Missing,
    /// The signature is of something else.
    #[error("invalid signature")]
    Invalid,
    /// A right signature whose time is over.
    #[error("signature is already expired")]
    Expired,
}

/// Checks a file request against the sandbox's access token. Without a token all is allowed.
///
/// `header` is the `X-Access-Token` of the request, `now` in Unix seconds.
///
/// # Errors
/// The [`Refusal`] to answer with.
pub fn authorize(
    token: Option<&str>,
    header: Option<&[u8]>,
    signature: Option<&str>,
    claim: &Claim<'_>,
    now: i64,
) -> Result<(), Refusal> {
    let Some(token) = token else { return Ok(()) };
    if let Some(header) = header {
        let matches = bool::from(header.ct_eq(token.as_bytes()));
        return if matches { Ok(()) } else { Err(Refusal::WrongToken) };
    }
    let signature = signature.ok_or(Refusal::Missing)?;
    if !bool::from(signature.as_bytes().ct_eq(claim.sign(token).as_bytes())) {
        return Err(Refusal::Invalid);
    }
    // After the match, so that an answer tells nothing about links nobody made.
    match claim.expiration {
        Some(expiration) if expiration < now => Err(Refusal::Expired),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::Operation::{Read, Write};
    use super::*;

    fn claim(
        path: &'static str,
        operation: Operation,
        username: &'static str,
        expiration: Option<i64>,
    ) -> Claim<'static> {
        Claim { path, operation, username, expiration }
    }

    // Rules: SIGN-8, SIGN-10, SIGN-11, TRAP-6
    #[test]
    fn the_published_vectors_hold() {
        let cases = [
            (
                claim("/home/user/a.txt", Read, "user", None),
                "tok",
                "v1_p0WqJQYCLtO6YX+e4h7VbpybRsdJbMbIw7clYpulIJk",
            ),
            (
                claim("hello world.txt", Write, "", Some(1_700_000_000)),
                "tok",
                "v1_QregFAKiQqjYED+7G01NIFmdo3nAY/Al4AGbmIOd/ZE",
            ),
            (
                claim("é.txt", Read, "root", Some(1_893_456_000)),
                "0123456789abcdef",
                "v1_Kzp+9tgQQzCur/GSEFxd/ftuXikuYQR2zqWy+ipmmR4",
            ),
            (
                claim("/home/user/a.txt", Read, "", None),
                "tok",
                "v1_Zkbb3914oLJLvMBzCAHQhm2ydBLxbSx2eQUR/kLdvIY",
            ),
            (
                claim("/home/user/a.txt", Write, "root", Some(1_700_000_000)),
                "tok",
                "v1_3hlIyTfkHTdfJKgNFUJamAQ7q+SOj3624i+geS/jqCM",
            ),
        ];
        for (claim, token, expected) in cases {
            assert_eq!(claim.sign(token), expected, "{claim:?}");
        }
    }

    // Rules: SIGN-2, SIGN-3, TRAP-6
    #[test]
    fn the_header_wins_over_the_signature() {
        let claim = claim("a", Read, "", None);
        let good = claim.sign("tok");
        let check = |header: Option<&[u8]>, signature: Option<&str>| {
            authorize(Some("tok"), header, signature, &claim, 0)
        };
        assert_eq!(check(Some(b"tok"), Some("nonsense")), Ok(()));
        assert_eq!(check(Some(b"tokk"), Some(&good)), Err(Refusal::WrongToken));
        assert_eq!(check(Some(b""), Some(&good)), Err(Refusal::WrongToken));
        assert_eq!(check(None, Some(&good)), Ok(()));
        assert_eq!(check(None, None), Err(Refusal::Missing));
        assert_eq!(check(None, Some("")), Err(Refusal::Invalid));
        assert_eq!(authorize(None, None, None, &claim, 0), Ok(()));
    }

    // Rules: SIGN-6, SIGN-7
    #[test]
    fn a_link_is_good_up_to_and_in_its_last_second() {
        let claim = claim("a", Write, "user", Some(100));
        let good = claim.sign("tok");
        let check =
            |signature: &str, now| authorize(Some("tok"), None, Some(signature), &claim, now);
        assert_eq!(check(&good, 99), Ok(()));
        assert_eq!(check(&good, 100), Ok(()));
        assert_eq!(check(&good, 101), Err(Refusal::Expired));
        assert_eq!(check("v1_x", 101), Err(Refusal::Invalid), "the match is checked first");
    }

    // Rules: SIGN-5, SIGN-9
    #[test]
    fn a_link_allows_nothing_but_what_was_signed() {
        let signed = claim("a", Read, "user", Some(100));
        let signature = signed.sign("tok");
        for other in [
            claim("b", Read, "user", Some(100)),
            claim("a", Write, "user", Some(100)),
            claim("a", Read, "", Some(100)),
            claim("a", Read, "user", Some(101)),
            claim("a", Read, "user", None),
        ] {
            let answer = authorize(Some("tok"), None, Some(&signature), &other, 0);
            assert_eq!(answer, Err(Refusal::Invalid), "{other:?}");
        }
    }
}
