//! Signatures, against a second implementation, at the route that asks for them.

use atoll_envd::files;
use axum::{Router, body::Body};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tower::ServiceExt;

use super::{guest, runner, runtime};

const TOKEN: &str = "0123456789abcdef";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// After all tests, and before them.
const FUTURE: i64 = 9_999_999_999;
const PAST: i64 = 1_000_000_000;

/// What a link says, before it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    path: String,
    write: bool,
    username: String,
    expiration: Option<i64>,
    token: String,
}

impl Link {
    /// The text that is signed.
    fn text(&self) -> String {
        let operation = if self.write { "write" } else { "read" };
        let mut fields = vec![&self.path, operation, &self.username, &self.token];
        let expiration = self.expiration.map(|expiration| expiration.to_string());
        fields.extend(expiration.as_deref());
        fields.join(":")
    }

    fn signature(&self) -> String {
        let digest = Sha256::digest(self.text().as_bytes());
        let mut signature = String::from("v1_");
        for group in digest.chunks(3) {
            let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
            let bits = bits << (8 * (3 - group.len()));
            for place in 0..=group.len() {
                let index = (bits >> (18 - 6 * place)) & 0x3f;
                signature.push(char::from(ALPHABET[index as usize]));
            }
        }
        signature
    }

    fn request(&self, signature: &str) -> Request<Body> {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut query = format!("path={}&signature={}", encode(&self.path), encode(signature));
        if !self.username.is_empty() {
            query.push_str(&format!("&username={}", encode(&self.username)));
        }
        if let Some(expiration) = self.expiration {
            query.push_str(&format!("&signature_expiration={expiration}"));
        }
        let method = if self.write { "POST" } else { "GET" };
        let request = Request::builder().method(method).uri(format!("/files?{query}"));
        // Of a type that is not taken: nothing is ever written here.
        request.header("content-type", "text/plain").body(Body::empty()).unwrap()
    }
}

fn link() -> impl Strategy<Value = Link> {
    // Colons separate the signed fields; the rest is what queries are apt to spoil.
    let text = "[a-z/:+%& =\u{e9}\u{1f600}~.]{0,24}";
    let username =
        prop_oneof![Just(String::new()), Just("no-such-user".into()), Just("a:b".into())];
    let expiration = prop::sample::select(vec![None, Some(FUTURE), Some(PAST), Some(-1)]);
    (text, any::<bool>(), username, expiration).prop_map(|(path, write, username, expiration)| {
        Link { path, write, username, expiration, token: TOKEN.into() }
    })
}

/// What is done to a link or its signature after signing.
#[derive(Clone, Debug)]
enum Tampering {
    Nothing,
    Path(String),
    Operation,
    Username(String),
    Expiration(Option<i64>),
    /// Signed by somebody who does not have the token.
    Token(String),
    /// One character of the signature, and what takes its place.
    Signature(prop::sample::Index, char),
    Cut(prop::sample::Index),
    Append(String),
}

fn tampering() -> impl Strategy<Value = Tampering> {
    prop_oneof![
        Just(Tampering::Nothing),
        "[a-z/:]{0,8}".prop_map(Tampering::Path),
        Just(Tampering::Operation),
        "[a-z:]{0,8}".prop_map(Tampering::Username),
        prop::sample::select(vec![None, Some(FUTURE), Some(PAST)]).prop_map(Tampering::Expiration),
        "[0-9a-f]{0,16}".prop_map(Tampering::Token),
        (any::<prop::sample::Index>(), any::<char>())
            .prop_map(|(index, char)| Tampering::Signature(index, char)),
        any::<prop::sample::Index>().prop_map(Tampering::Cut),
        "[=A ]{1,2}".prop_map(Tampering::Append),
    ]
}

fn tamper(link: &Link, tampering: Tampering) -> (Link, String) {
    let mut asked = link.clone();
    let mut signature = link.signature();
    match tampering {
        Tampering::Nothing => {}
        Tampering::Path(path) => asked.path = path,
        Tampering::Operation => asked.write = !asked.write,
        Tampering::Username(username) => asked.username = username,
        Tampering::Expiration(expiration) => asked.expiration = expiration,
        Tampering::Token(token) => signature = Link { token, ..link.clone() }.signature(),
        Tampering::Signature(index, char) => {
            let at = index.index(signature.len());
            signature.replace_range(at..=at, &char.to_string());
        }
        Tampering::Cut(index) => signature.truncate(index.index(signature.len())),
        Tampering::Append(more) => signature.push_str(&more),
    }
    (asked, signature)
}

/// The sentence with which a request is refused for its signature, if it is.
async fn refusal(router: Router, request: Request<Body>) -> Option<String> {
    let response = router.oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = body["message"].as_str().unwrap_or_default().to_owned();
    // Behind the check the user may turn out not to exist.
    let refused = status == StatusCode::UNAUTHORIZED && message.contains("signature");
    refused.then_some(message)
}

// Rules: SIGN-1
#[test]
fn exactly_the_right_signature_is_accepted() {
    let runtime = runtime();
    let router = files::router(guest(Some(TOKEN)));
    runner(256, "tests/fuzz/corpus/signature.txt")
        .run(&(link(), tampering()), |(link, tampering)| {
            let (asked, signature) = tamper(&link, tampering);
            let refused = runtime.block_on(refusal(router.clone(), asked.request(&signature)));
            let expected = if signature != asked.signature() {
                Some("invalid signature")
            } else if asked.expiration.is_some_and(|expiration| expiration <= PAST) {
                Some("signature is already expired")
            } else {
                None
            };
            prop_assert_eq!(refused.as_deref(), expected);
            Ok(())
        })
        .unwrap();
}
