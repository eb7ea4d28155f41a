//! The rows of builds of templates, in whichever state.

use atoll_core::TemplateId;
use atoll_wire::{build::BuildFailure, log::LogLevel};
use jiff::Timestamp;
use uuid::Uuid;

use crate::model::{Build, Direction};

/// Where a build stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildStatus {
    /// It is registered, and nobody has said yet what it is made of.
    Waiting,
    /// It is under way.
    Building,
    /// It can be used.
    Ready,
    /// It failed, or was cancelled.
    Failed,
}

/// A build of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRecord {
    /// Its id and what its sandboxes get; no version of envd before it is ready.
    pub build: Build,
    /// The template that it is of.
    pub template: TemplateId,
    /// First alias of that, bare.
    pub alias: Option<String>,
    /// The team that it belongs to.
    pub team: Uuid,
    /// Where it stands.
    pub status: BuildStatus,
    /// Why it failed.
    pub failure: Option<BuildFailure>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was ready, or failed.
    pub finished_at: Option<Timestamp>,
}

/// A build to be registered.
#[derive(Clone, Debug)]
pub struct NewTemplateBuild {
    /// The template to make, unless there is one of that alias.
    pub template: TemplateId,
    /// The template's alias in the namespace of its team.
    pub alias: String,
    /// The tags that lead to it once it is ready.
    pub tags: Vec<String>,
    /// Its id and what its sandboxes get.
    pub build: Build,
}

/// A build that was registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The template that it is of.
    pub template: TemplateId,
    /// Every team may use it.
    pub public: bool,
    /// Bare aliases.
    pub aliases: Vec<String>,
    /// Qualified names.
    pub names: Vec<String>,
}

/// Which lines of a build's log are wanted.
#[derive(Clone, Copy, Debug)]
pub struct BuildLogQuery {
    /// The build.
    pub build: Uuid,
    /// The least level.
    pub level: LogLevel,
    /// The most lines.
    pub limit: u32,
    /// Where to begin.
    pub from: BuildLogStart,
}

/// Where a page of a build's log begins.
#[derive(Clone, Copy, Debug)]
pub enum BuildLogStart {
    /// Behind that many lines of the level wanted.
    Offset(u64),
    /// At a time: with its lines when read forward, before them when read backward.
    Time(Timestamp, Direction),
}

/// A tag that was given to a build which is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagAssignment {
    /// Its number: later ones are greater.
    pub id: u64,
    /// The tag.
    pub tag: String,
    /// The build.
    pub build: Uuid,
    /// When the tag was given to it.
    pub assigned_at: Timestamp,
    /// When the build was registered.
    pub build_created_at: Timestamp,
    /// When the build was ready.
    pub build_finished_at: Option<Timestamp>,
}

/// What a build is told whose place a newer one takes (control-plane contract, section 10.2).
pub const SUPERSEDED: &str = "The build was canceled because it was superseded by a newer one.";
