//! Templates and their builds, as the API has them.

use std::io;

use atoll_core::{Error, Result, error::codes};
use atoll_wire::rest;
use bytes::Bytes;
use futures::Stream;
use reqwest::{Body, Method, header::CONTENT_LENGTH};
use serde::Serialize;
use serde_json::json;

use super::{
    Client, root_cause,
    sandboxes::{NOTHING, segment},
};

/// What a build is registered with.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Registration {
    pub(crate) name: String,
    pub(crate) tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_count: Option<u32>,
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    pub(crate) memory_mb: Option<u32>,
}

/// All that a build is made of.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Plan {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from_image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from_template: Option<String>,
    /// The hash of an uploaded archive of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from_archive: Option<String>,
    pub(crate) force: bool,
    pub(crate) steps: Vec<PlanStep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) start_cmd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_cmd: Option<String>,
}

/// A step of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlanStep {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) args: Vec<String>,
    pub(crate) force: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) files_hash: Option<String>,
}

impl Client {
    /// Registers a build; of a new template if the name is.
    pub(crate) async fn register(
        &self,
        registration: &Registration,
    ) -> Result<rest::RegisteredTemplate> {
        Self::parse(self.send(Method::POST, "/v3/templates", Some(registration)).await?).await
    }

    /// Whether the team has uploaded files of this hash, and where they go.
    pub(crate) async fn files(&self, template: &str, hash: &str) -> Result<rest::FilesUpload> {
        let path = format!("/templates/{}/files/{}", segment(template), segment(hash));
        Self::parse(self.send(Method::GET, &path, NOTHING).await?).await
    }

    /// Uploads an archive to an address that [`files`](Self::files) gave, which needs no key.
    ///
    /// # Errors
    /// What the API says; `NODE_UNAVAILABLE` if the connection breaks.
    pub(crate) async fn upload(
        &self,
        url: &str,
        length: u64,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<()> {
        let body = Body::wrap_stream(content);
        let request = self.http.put(url).header(CONTENT_LENGTH, length).body(body);
        let response = request.send().await.map_err(|error| {
            Error::new(
                codes::NODE_UNAVAILABLE,
                format!("the upload broke off: {}.", root_cause(&error)),
            )
            .with_fix("Build again; what was uploaded before is kept.")
        })?;
        Self::succeeded(response).await.map(drop)
    }

    /// Starts a registered build.
    pub(crate) async fn start_build(&self, template: &str, build: &str, plan: &Plan) -> Result<()> {
        let path = format!("/v2/templates/{}/builds/{}", segment(template), segment(build));
        self.send(Method::POST, &path, Some(plan)).await.map(drop)
    }

    /// A build's state, and at most a hundred lines of its log from the line `offset` on.
    pub(crate) async fn build(
        &self,
        template: &str,
        build: &str,
        offset: usize,
    ) -> Result<rest::TemplateBuildInfo> {
        let (template, build) = (segment(template), segment(build));
        let path = format!("/templates/{template}/builds/{build}/status?logsOffset={offset}");
        Self::parse(self.send(Method::GET, &path, NOTHING).await?).await
    }

    /// Stops a build.
    pub(crate) async fn cancel_build(&self, build: &str) -> Result<()> {
        let path = format!("/atoll/templates/builds/{}", segment(build));
        self.send(Method::DELETE, &path, NOTHING).await.map(drop)
    }

    /// A sandbox as a failed step found things, or of a finished build, that lives `timeout` seconds.
    pub(crate) async fn build_shell(&self, build: &str, timeout: u32) -> Result<rest::Sandbox> {
        let path = format!("/atoll/templates/builds/{}/shell", segment(build));
        let body = json!({ "timeout": timeout });
        Self::parse(self.send(Method::POST, &path, Some(&body)).await?).await
    }

    /// The team's templates, newest first.
    pub(crate) async fn templates(&self) -> Result<Vec<rest::Template>> {
        self.pages("/v2/templates?limit=100").await
    }

    /// A template's tags, each with the build it stands for.
    pub(crate) async fn tags(&self, template: &str) -> Result<Vec<rest::TemplateTag>> {
        let path = format!("/templates/{}/tags", segment(template));
        Self::parse(self.send(Method::GET, &path, NOTHING).await?).await
    }

    /// A template's last hundred builds, newest first.
    pub(crate) async fn builds(&self, template: &str) -> Result<Vec<rest::TemplateBuild>> {
        let path = format!("/templates/{}?limit=100", segment(template));
        let response = self.send(Method::GET, &path, NOTHING).await?;
        Ok(Self::parse::<rest::TemplateWithBuilds>(response).await?.builds)
    }

    /// The template that a name means, and whether every team may use it.
    pub(crate) async fn template_named(&self, alias: &str) -> Result<rest::TemplateAlias> {
        let path = format!("/templates/aliases/{}", segment(alias));
        Self::parse(self.send(Method::GET, &path, NOTHING).await?).await
    }

    /// Lets every team use a template of the team's, by its plain name.
    pub(crate) async fn publish_template(&self, template: &str) -> Result<()> {
        let path = format!("/templates/{}", segment(template));
        self.send(Method::PATCH, &path, Some(&json!({ "public": true }))).await.map(drop)
    }

    /// Takes tags away from a template's builds.
    pub(crate) async fn remove_tags(&self, template: &str, tags: &[String]) -> Result<()> {
        let body = json!({ "name": template, "tags": tags });
        self.send(Method::DELETE, "/templates/tags", Some(&body)).await.map(drop)
    }

    /// Deletes a template, or a snapshot, by name or id.
    pub(crate) async fn delete_template(&self, template: &str) -> Result<()> {
        let path = format!("/templates/{}", segment(template));
        self.send(Method::DELETE, &path, NOTHING).await.map(drop)
    }

    /// Deletes what builds left for later ones and nothing needs.
    pub(crate) async fn prune(&self) -> Result<rest::PrunedTemplates> {
        Self::parse(self.send(Method::POST, "/atoll/templates/prune", NOTHING).await?).await
    }
}
