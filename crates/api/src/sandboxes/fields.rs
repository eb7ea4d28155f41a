//! Which fields of a create this release can honour.
//!
//! A field of the contract that is not built is refused when it asks for something, and let pass
//! when it has the value it would have by default: clients send defaults. Nothing is ignored in
//! silence. Where the contract has a sentence for deployments without a feature, that one is used.

use std::collections::BTreeMap;

use atoll_core::{error::codes, limits::MAX_LABELS};
use atoll_wire::rest;
use serde_json::Value;

use crate::error::{ApiError, ApiResult};

/// Checks the fields that go together or are not built, in the contract's order.
pub(super) fn check(body: &rest::NewSandbox) -> ApiResult<()> {
    check_lifecycle(body)?;
    if body.iam.as_ref().is_some_and(|iam| has_entries(iam.tokens.as_ref())) {
        return Err(unavailable("Sandbox IAM workload tokens are not available for your team."));
    }
    if let Some(network) = &body.network {
        check_network(network)?;
    }
    if body.volume_mounts.as_ref().is_some_and(|mounts| !mounts.is_empty()) {
        return Err(unavailable("Volume mounts are not enabled."));
    }
    Ok(())
}

/// What happens at the deadline and on traffic.
fn check_lifecycle(body: &rest::NewSandbox) -> ApiResult<()> {
    if body.auto_pause_memory != Some(false) {
        return Ok(());
    }
    let refused = |sentence: &str| Err(ApiError::fixed(codes::INVALID_REQUEST, sentence));
    if body.auto_pause != Some(true) {
        return refused("autoPauseMemory=false only applies when autoPause is true.");
    }
    if body.auto_resume.as_ref().is_some_and(|resume| resume.enabled == Some(true)) {
        return refused(
            "autoPauseMemory=false cannot be combined with autoResume: traffic wakes only what \
             was paused with its memory.",
        );
    }
    Ok(())
}

fn check_network(network: &rest::NetworkConfig) -> ApiResult<()> {
    let refused = [
        ("network.allowPublicTraffic", network.allow_public_traffic == Some(false)),
        ("network.allowOut", has_items(network.allow_out.as_ref())),
        ("network.denyOut", has_items(network.deny_out.as_ref())),
        ("network.dnsServers", has_items(network.dns_servers.as_ref())),
        ("network.httpsPorts", has_items(network.https_ports.as_ref())),
        ("network.egressProxy", network.egress_proxy.is_some()),
        (
            "network.maskRequestHost",
            network.mask_request_host.as_ref().is_some_and(|mask| !mask.is_empty()),
        ),
    ];
    if let Some((field, _)) = refused.iter().find(|(_, is_set)| *is_set) {
        return Err(ApiError::unsupported(field));
    }
    if has_entries(network.rules.as_ref()) {
        return Err(unavailable("Network transform rules are not available for your team."));
    }
    Ok(())
}

fn has_items<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

fn has_entries(map: Option<&BTreeMap<String, Value>>) -> bool {
    map.is_some_and(|map| !map.is_empty())
}

fn unavailable(sentence: &str) -> ApiError {
    ApiError::fixed(codes::UNSUPPORTED_FIELD, sentence)
}

/// Bounds what a request can make the control plane and the node remember.
pub(super) fn check_size(field: &str, map: Option<&BTreeMap<String, String>>) -> ApiResult<()> {
    let size: usize = map.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_LABELS {
        return Err(ApiError::validation(format!(
            "{field} may have {MAX_LABELS} bytes at most, got {size}"
        )));
    }
    Ok(())
}

/// Refuses variables that no process could be given.
pub(super) fn check_env_vars(vars: Option<&BTreeMap<String, String>>) -> ApiResult<()> {
    for (name, value) in vars.into_iter().flatten() {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(ApiError::validation(format!(
                "envVars: {name:?} cannot be set: names must be non-empty and without '=', and \
                 neither name nor value may hold a zero byte"
            )));
        }
    }
    Ok(())
}
