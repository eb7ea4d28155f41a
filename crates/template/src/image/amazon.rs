//! Passwords for registries of Amazon's, which gives them out for a signed request and for some hours
//! (ECR's `GetAuthorizationToken`, signed by "Signature Version 4").

use atoll_core::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::{Timestamp, tz::TimeZone};
use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    client::{Client, Request},
    session::bounded,
    told, unavailable,
};

const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
const CONTENT: &str = "application/x-amz-json-1.1";
const BODY: &str = "{}";
const LARGEST_ANSWER: usize = 64 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: Vec<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    authorization_token: String,
}

/// `user:password` for the registries of a region that these keys may use.
pub(super) async fn password(
    client: &Client,
    key_id: &str,
    secret: &str,
    region: &str,
) -> Result<String> {
    let none =
        |why: &str| unavailable(format!("Amazon gives no password for its registry: {why}."));
    // It becomes part of a host's name, and what signs it of a header.
    let is_plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if region.is_empty() || !is_plain(region) || !is_plain(key_id) {
        return Err(none("the region or the key's id is none"));
    }
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let host = format!("api.ecr.{region}.{domain}");
    let url = Url::parse(&format!("https://{host}/")).map_err(|_| none("the region is none"))?;
    let time = Timestamp::now().to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
    let signed = [
        ("content-type", CONTENT),
        ("host", &host),
        ("x-amz-date", &time),
        ("x-amz-target", TARGET),
    ];
    let keys = Keys { id: key_id, secret, region, service: "ecr" };
    let authorization = keys.authorization("POST", &signed, BODY, &time);
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (CONTENT_TYPE, CONTENT),
        (HeaderName::from_static("x-amz-date"), &time),
        (HeaderName::from_static("x-amz-target"), TARGET),
    ] {
        headers.insert(name, HeaderValue::from_str(value).map_err(|_| none("no header"))?);
    }
    let mut authorization =
        HeaderValue::from_str(&authorization).map_err(|_| none("the keys are none"))?;
    authorization.set_sensitive(true);
    let authorization = Some(authorization);
    let request = Request { method: Method::POST, url: &url, headers, authorization, body: BODY };
    let response = client.send(&request).await?;
    let status = response.status();
    let answer = bounded(response, LARGEST_ANSWER).await?;
    if !status.is_success() {
        return Err(none(&told(&format!("{status}, {}", String::from_utf8_lossy(&answer)))));
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| none("no answer"))?;
    let token = answer.authorization_data.first().map(|data| data.authorization_token.as_str());
    let password = token.and_then(|token| STANDARD.decode(token).ok());
    password.and_then(|text| String::from_utf8(text).ok()).ok_or_else(|| none("no token"))
}

/// What signs requests.
struct Keys<'a> {
    id: &'a str,
    secret: &'a str,
    region: &'a str,
    service: &'a str,
}

impl Keys<'_> {
    /// The header that signs a request for `/`. `headers` are in order of their names; `time` is one
    /// of them.
    fn authorization(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        body: &str,
        time: &str,
    ) -> String {
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String =
            headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let request = format!("{method}\n/\n\n{lines}\n{names}\n{}", digest(body));
        let day = time.split('T').next().unwrap_or_default();
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", digest(&request));
        let mut key = format!("AWS4{}", self.secret).into_bytes();
        for part in [day, self.region, self.service, "aws4_request"] {
            key = sign(&key, part);
        }
        let signature = hex::encode(sign(&key, &text));
        let id = self.id;
        format!(
            "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
    }
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    // Takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Amazon's suite of examples: `get-vanilla` and `post-vanilla`.
    #[test]
    fn requests_are_signed_as_amazon_shows() {
        let keys = Keys {
            id: "AKIDEXAMPLE",
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            region: "us-east-1",
            service: "service",
        };
        let time = "20150830T123600Z";
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", time)];
        for (method, signature) in [
            ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        ] {
            let header = keys.authorization(method, &headers, "", time);
            assert_eq!(
                header,
                format!(
                    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                     SignedHeaders=host;x-amz-date, Signature={signature}"
                )
            );
        }
    }
}
