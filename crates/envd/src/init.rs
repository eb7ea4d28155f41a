//! `POST /init`: the settings of the sandbox, from the node.
//!
//! A node proves itself with the control secret. An envd without one (started by hand, without a
//! node) falls back to the access token: whoever knows the current one may replace it.
//!
//! The node repeats `/init` until one succeeds, and may give up on any of them: applying one has no
//! await in it, so it happens wholly or not at all, and doing it twice is doing it once. For the
//! same reason none ever finds another under way.
//!
//! A sandbox that comes from a checkpoint may be another one than then, and is told so: its ids, its
//! limits, and another control secret.
//!
//! Two things that `/init` does in a virtual machine have no place here:
//!
//! - *The clock* is the kernel's, and the kernel is the node's: it is right after a resume too. An
//!   envd that could set it would set its node's, so `timestamp` only puts requests in order.
//! - *Volumes* are mounted by the node, because a sandbox may not mount network file systems. A
//!   volume that is not there is an error: what is written to its path would be lost.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use atoll_wire::guest::{InitRequest, VolumeMount};
use buffa_types::google::protobuf::Timestamp;
use http::StatusCode;

use crate::{guest::Guest, identity, mounts, trust::TrustStore};

/// Why a request was not applied: a status and a sentence.
pub type Refusal = (StatusCode, String);

/// Applies the body of a request. Whatever it says, what was frozen is thawed when it is applied.
///
/// # Errors
/// 400 for a malformed request or one that cannot be honoured, 401 for a wrong token. Nothing has
/// changed then.
pub fn apply(guest: &Guest, trust: &Mutex<TrustStore>, body: &[u8]) -> Result<(), Refusal> {
    let request = parse(body)?;
    let timestamp = request.timestamp.as_deref().map(parse_timestamp).transpose()?;
    check_token(guest, &request)?;
    if !timestamp.is_some_and(|timestamp| guest.is_stale(&request, timestamp)) {
        check_volumes(request.volume_mounts.as_deref().unwrap_or_default())?;
        if let Some(pem) = &request.ca_bundle {
            let trust = trust.lock().unwrap_or_else(PoisonError::into_inner);
            trust
                .install(pem)
                .map_err(|error| bad_request(format!("error installing caBundle: {error}")))?;
        }
        let before = guest.identity();
        guest.apply(request, timestamp);
        let now = guest.identity();
        if now != before {
            identity::write(&now.0, &now.1);
        }
    }
    guest.set_frozen(false);
    Ok(())
}

fn check_token(guest: &Guest, request: &InitRequest) -> Result<(), Refusal> {
    let offered = request.access_token.as_deref().filter(|token| !token.is_empty());
    if guest.has_control_secret() || guest.accepts_token(offered.map(str::as_bytes)) {
        return Ok(());
    }
    let message = match offered {
        Some(_) => "access token validation failed",
        None => "access token reset not authorized",
    };
    Err((StatusCode::UNAUTHORIZED, message.to_owned()))
}

fn check_volumes(volumes: &[VolumeMount]) -> Result<(), Refusal> {
    if volumes.is_empty() {
        return Ok(());
    }
    let mounts =
        mounts::list().map_err(|error| bad_request(format!("error listing mounts: {error}")))?;
    for VolumeMount { path } in volumes {
        if !Path::new(path).is_absolute() || !mounts::is_mount_point(&mounts, path) {
            return Err(bad_request(format!(
                "volume at '{path}' is not mounted: the node mounts volumes before the sandbox \
                 starts, envd cannot"
            )));
        }
    }
    Ok(())
}

fn parse(body: &[u8]) -> Result<InitRequest, Refusal> {
    if body.is_empty() {
        return Ok(InitRequest::default());
    }
    serde_json::from_slice(body)
        .map_err(|error| bad_request(format!("failed to decode request: {error}")))
}

/// RFC 3339 to seconds and nanoseconds, which compare as the times do.
fn parse_timestamp(text: &str) -> Result<(i64, i32), Refusal> {
    let parsed: Result<Timestamp, _> = serde_json::from_value(text.into());
    parsed
        .map(|timestamp| (timestamp.seconds, timestamp.nanos))
        .map_err(|error| bad_request(format!("invalid timestamp: {error}")))
}

fn bad_request(message: String) -> Refusal {
    (StatusCode::BAD_REQUEST, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: INIT-6
    #[test]
    fn timestamps_compare_across_zones_and_fractions() {
        let at = |text| parse_timestamp(text).unwrap();
        assert_eq!(at("2026-01-01T00:00:00Z"), at("2026-01-01T01:00:00+01:00"));
        assert!(at("2026-01-01T00:00:00.000000001Z") > at("2026-01-01T00:00:00Z"));
        assert!(parse_timestamp("yesterday").is_err());
    }
}
