//! Sandboxes and what is done with them, as the API has it.

use std::collections::BTreeMap;

use atoll_core::Result;
use atoll_wire::rest;
use percent_encoding::{NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use reqwest::Method;
use serde::{Serialize, Serializer, de::DeserializeOwned};
use serde_json::json;

use super::Client;

/// What a create asks for.
#[derive(Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Create {
    #[serde(rename = "templateID")]
    pub(crate) template: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<u32>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) env_vars: BTreeMap<String, String>,
    #[serde(rename = "allow_internet_access", skip_serializing_if = "Option::is_none")]
    pub(crate) allow_internet_access: Option<bool>,
    /// Pause when the time is up.
    pub(crate) auto_pause: bool,
    #[serde(serialize_with = "enabled")]
    pub(crate) auto_resume: bool,
}

fn enabled<S: Serializer>(value: &bool, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    json!({ "enabled": value }).serialize(serializer)
}

/// No body.
pub(super) const NOTHING: Option<&()> = None;

impl Client {
    pub(crate) async fn create(&self, create: &Create) -> Result<rest::Sandbox> {
        Self::parse(self.send(Method::POST, "/v2/sandboxes", Some(create)).await?).await
    }

    /// Everything needed to talk to a sandbox that runs; its deadline moves only if it is sooner
    /// than `timeout` seconds.
    pub(crate) async fn connect(&self, id: &str, timeout: u32) -> Result<rest::Sandbox> {
        let body = BTreeMap::from([("timeout", timeout)]);
        let path = format!("/v2/sandboxes/{}/connect", segment(id));
        Self::parse(self.send(Method::POST, &path, Some(&body)).await?).await
    }

    pub(crate) async fn kill(&self, id: &str) -> Result<()> {
        let path = format!("/sandboxes/{}", segment(id));
        self.send(Method::DELETE, &path, NOTHING).await.map(drop)
    }

    pub(crate) async fn info(&self, id: &str) -> Result<rest::SandboxDetail> {
        let path = format!("/sandboxes/{}", segment(id));
        Self::parse(self.send(Method::GET, &path, NOTHING).await?).await
    }

    /// A sandbox's resource use, oldest sample first.
    pub(crate) async fn metrics(&self, id: &str) -> Result<Vec<rest::SandboxMetric>> {
        let path = format!("/sandboxes/{}/metrics", segment(id));
        Self::parse(self.send(Method::GET, &path, NOTHING).await?).await
    }

    /// A page of a sandbox's log, oldest line first: lines of at least `level` from the millisecond
    /// `start` on.
    pub(crate) async fn logs(
        &self,
        id: &str,
        start: i64,
        level: &str,
    ) -> Result<Vec<rest::SandboxLogEntry>> {
        let id = segment(id);
        let path =
            format!("/v2/sandboxes/{id}/logs?direction=forward&cursor={start}&level={level}");
        let response = self.send(Method::GET, &path, NOTHING).await?;
        Ok(Self::parse::<rest::SandboxLogsV2Response>(response).await?.logs)
    }

    /// All of the team's sandboxes, paused ones too.
    pub(crate) async fn list(&self) -> Result<Vec<rest::ListedSandbox>> {
        self.pages("/v2/sandboxes?limit=100").await
    }

    /// Pauses a sandbox; it is paused when this returns.
    pub(crate) async fn pause(&self, id: &str, memory: bool) -> Result<()> {
        let path = format!("/sandboxes/{}/pause", segment(id));
        self.send(Method::POST, &path, Some(&json!({ "memory": memory }))).await.map(drop)
    }

    /// Makes copies of a sandbox, a paused one too: what became of each.
    pub(crate) async fn fork(
        &self,
        id: &str,
        count: u32,
        timeout: u32,
    ) -> Result<Vec<rest::ForkResult>> {
        let path = format!("/atoll/sandboxes/{}/fork", segment(id));
        let body = json!({ "count": count, "timeout": timeout });
        Self::parse(self.send(Method::POST, &path, Some(&body)).await?).await
    }

    /// Keeps a copy of a sandbox.
    pub(crate) async fn snapshot(
        &self,
        id: &str,
        name: Option<&str>,
    ) -> Result<rest::SnapshotInfo> {
        let path = format!("/sandboxes/{}/snapshots", segment(id));
        let body: BTreeMap<_, _> = name.map(|name| ("name", name)).into_iter().collect();
        Self::parse(self.send(Method::POST, &path, Some(&body)).await?).await
    }

    /// The team's snapshots, newest first; those of one sandbox if it is given.
    pub(crate) async fn snapshots(&self, id: Option<&str>) -> Result<Vec<rest::SnapshotInfo>> {
        let of = id.map(|id| format!("&sandboxID={}", segment(id))).unwrap_or_default();
        self.pages(&format!("/snapshots?limit=100{of}")).await
    }

    /// Takes a sandbox back to one of its snapshots.
    pub(crate) async fn rewind(&self, id: &str, snapshot: &str) -> Result<rest::SandboxDetail> {
        let path = format!("/atoll/sandboxes/{}/rewind", segment(id));
        let body = json!({ "snapshotID": snapshot });
        Self::parse(self.send(Method::POST, &path, Some(&body)).await?).await
    }

    /// What a sandbox came from and what came from it.
    pub(crate) async fn lineage(&self, id: &str) -> Result<rest::SandboxLineage> {
        let path = format!("/atoll/sandboxes/{}/lineage", segment(id));
        Self::parse(self.send(Method::GET, &path, NOTHING).await?).await
    }

    /// All pages of a list.
    pub(super) async fn pages<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let response = self.send(Method::GET, &format!("{path}{cursor}"), NOTHING).await?;
            let next = response
                .headers()
                .get("x-next-token")
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned);
            all.extend(Self::parse::<Vec<T>>(response).await?);
            match next {
                Some(token) => cursor = format!("&nextToken={token}"),
                None => return Ok(all),
            }
        }
    }
}

/// What somebody typed, as one segment of a path or one value of a query.
pub(super) fn segment(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}
