//! The filters of sandbox lists (control-plane contract, section 5.4).

use std::collections::BTreeMap;

use atoll_core::error::codes;
use atoll_state::catalogue::Entry;
use atoll_wire::rest::SandboxState;
use jiff::Timestamp;

use crate::{
    cursor::Order,
    error::{ApiError, ApiResult},
};

/// Labels that a sandbox must have, all of them, each with exactly this value.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MetadataFilter(BTreeMap<String, String>);

impl MetadataFilter {
    /// Reads the value of the query parameter, after the query itself was decoded. SDKs encode twice
    /// more: each key and value, then the pairs as a form. So the whole is unescaped, split at `&`
    /// and at the first `=`, and each side is unescaped again.
    pub(super) fn parse(value: &str) -> ApiResult<Self> {
        let malformed = || ApiError::fixed(codes::INVALID_REQUEST, "Invalid metadata filter");
        let pairs = unescape(value).ok_or_else(malformed)?;
        if pairs.is_empty() {
            return Ok(Self::default());
        }
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=')?;
            Some((unescape(key)?, unescape(value)?))
        };
        let labels = pairs.split('&').map(pair).collect::<Option<_>>();
        labels.map(Self).ok_or_else(malformed)
    }

    /// Whether `entry` has all the labels.
    pub(super) fn matches(&self, entry: &Entry) -> bool {
        self.0.iter().all(|(key, value)| entry.sandbox.record.metadata.get(key) == Some(value))
    }
}

/// Undoes form encoding; none when an escape is malformed or the result is not UTF-8.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16)?.try_into().ok();
                let (high, low): (u8, u8) = (digit()?, digit()?);
                high << 4 | low
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The states asked for: both, by default.
pub(super) fn states(csv: Option<&str>) -> ApiResult<Vec<SandboxState>> {
    let Some(csv) = csv else { return Ok(vec![SandboxState::Running, SandboxState::Paused]) };
    csv.split(',')
        .map(|state| match state {
            "running" => Ok(SandboxState::Running),
            "paused" => Ok(SandboxState::Paused),
            other => Err(ApiError::validation(format!(
                "state must be of 'running' and 'paused', got {other:?}"
            ))),
        })
        .collect()
}

/// The direction asked for.
pub(super) fn order(value: Option<&str>) -> ApiResult<Order> {
    match value {
        None | Some("desc") => Ok(Order::Descending),
        Some("asc") => Ok(Order::Ascending),
        Some(other) => {
            Err(ApiError::validation(format!("order must be 'asc' or 'desc', got {other:?}")))
        }
    }
}

/// The earliest start asked for, in microseconds: clients know times to the millisecond, the
/// catalogue to the nanosecond, so neither is compared closer than this.
pub(super) fn started_after(value: Option<&str>) -> ApiResult<Option<i64>> {
    value
        .map(|text| match text.parse::<Timestamp>() {
            Ok(time) => Ok(time.as_microsecond()),
            Err(_) => Err(ApiError::validation(format!(
                "startedAfter must be an RFC 3339 time, got {text:?}"
            ))),
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(value: &str) -> BTreeMap<String, String> {
        MetadataFilter::parse(value).unwrap().0
    }

    #[test]
    fn what_sdks_send() {
        // {"a&b": "1=2 ü+"}: each side quoted, then urlencoded as a form.
        let sent = "a%2526b=1%253D2%2520%25C3%25BC%252B";
        assert_eq!(labels(sent), BTreeMap::from([("a&b".into(), "1=2 ü+".into())]));
    }

    #[test]
    fn what_people_type() {
        let pairs = BTreeMap::from([("a".into(), "1".into()), ("b".into(), "x=y z".into())]);
        assert_eq!(labels("a=1&b=x=y+z"), pairs);
        assert_eq!(labels(""), BTreeMap::new());
        assert_eq!(labels("a="), BTreeMap::from([("a".into(), String::new())]));
    }

    #[test]
    fn malformed() {
        for bad in
            ["a", "a=1&", "&a=1", "a=%", "a=%2", "a=%zz", "%25", "a=%2525zz&%", "a=%ff", "a=%25ff"]
        {
            assert!(MetadataFilter::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
