//! Durable state.

use async_trait::async_trait;
use atoll_core::{Result, TemplateId, reference::Reference};
use atoll_wire::{
    build::{BuildEvent, BuildLine},
    node::LogLine,
};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    builds::{BuildLogQuery, BuildRecord, NewTemplateBuild, Registered, TagAssignment},
    model::{
        Build, KeyOwner, LogQuery, MetricRow, NewSnapshot, Snapshot, Team, Template, TokenOwner,
    },
};

/// The team that [`Database::seed`] makes, the operator's: the same in every deployment, so that what
/// was written down about one (a log, a script) is true of the next.
pub const DEVELOPMENT_TEAM: Uuid = uuid::uuid!("6c1f4d52-8f0e-4b7a-9a35-d04be1a7c3f8");

/// The published API key of local development.
pub const DEVELOPMENT_API_KEY: &str = "e2b_53ae1fed82754c17ad8077fbc8bcdd90";

/// The published access token of local development.
pub const DEVELOPMENT_ACCESS_TOKEN: &str = "sk_e2b_89215020937a4c989cde33d7bc647715";

/// What [`Database::seed`] writes on first start. Idempotent: a second call with other keys adds
/// them and leaves the rest, except that secret keys retire the published ones.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Raw API key (hashed before it is stored).
    pub api_key: String,
    /// Raw access token (hashed before it is stored).
    pub access_token: String,
    /// The keys are the published ones. A seed that denies it of [`DEVELOPMENT_API_KEY`] or
    /// [`DEVELOPMENT_ACCESS_TOKEN`] is refused.
    pub development: bool,
    /// The seeded user.
    pub user: Uuid,
}

/// What [`Database::publish_global_template`] records.
#[derive(Clone, Debug)]
pub struct NewBuild {
    /// Alias in the global namespace, such as `base`.
    pub alias: String,
    /// The build.
    pub build: Build,
}

/// A reference that leads to a build, with what the sandbox's record needs.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The template.
    pub template: TemplateId,
    /// First alias, bare.
    pub alias: Option<String>,
    /// The build to start.
    pub build: Build,
}

/// The template that a reference names, whatever its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The template.
    pub template: TemplateId,
    /// It belongs to the team that asks.
    pub is_own: bool,
    /// Every team may use it.
    pub is_public: bool,
    /// Its builds are snapshots.
    pub is_snapshot: bool,
    /// It came with the deployment: its only names are global ones.
    pub is_shipped: bool,
    /// First alias, bare: what [`set_public`](Database::set_public) reserves.
    pub alias: Option<String>,
}

/// Durable control-plane state.
#[async_trait]
pub trait Database: Send + Sync + 'static {
    /// Creates the development tier, user, team and keys unless they are there.
    async fn seed(&self, seed: &Seed) -> Result<Team>;

    /// The owner of the API key with this stored hash, or none. Updates `last_used` at most once a
    /// minute.
    async fn key_owner(&self, hash: &str) -> Result<Option<KeyOwner>>;

    /// The user whose access token has this stored hash, with the teams; none for an unknown token.
    async fn token_owner(&self, hash: &str) -> Result<Option<TokenOwner>>;

    /// Stores the API key `raw` (hashed) of `team` under `name`, as made by `user`.
    async fn create_api_key(&self, team: Uuid, user: Uuid, name: &str, raw: &str) -> Result<()>;

    /// A team by id.
    async fn team(&self, id: Uuid) -> Result<Option<Team>>;

    /// Records a ready build of a public template in the global namespace and makes it the one that
    /// the alias leads to; makes the template, owned by the team `owner`, if it is new. Idempotent by
    /// build id.
    async fn publish_global_template(&self, new: &NewBuild, owner: Uuid) -> Result<TemplateId>;

    /// Resolves `reference` as `team` sees it (contract section 3.2). Messages of the error are the
    /// contract's: `template 'X' not found`, `tag 'T' does not exist for template 'X'`, and for a
    /// private template of another team whose name is in the global namespace
    /// `you don't have access to template 'X'`. Other private templates are not found.
    async fn resolve_template(&self, reference: &Reference, team: &Team) -> Result<Resolved>;

    /// The template that `reference` names as `team` sees it. Errors as in
    /// [`resolve_template`](Self::resolve_template), but for the tag, which is not looked at.
    async fn find_template(&self, reference: &Reference, team: &Team) -> Result<Named>;

    /// Deletes a template and gives its names free; returns the builds that it had, none if it was
    /// not there. Those that were under way have failed then.
    async fn delete_template(&self, template: &TemplateId) -> Result<Option<Vec<Uuid>>>;

    /// The template that a snapshot of the team under `name`, which has no namespace and no tag, is
    /// to be of; none if the name is free. `CONFLICT` or `FORBIDDEN` with the contract's message if
    /// it is taken by something else.
    async fn snapshot_template(&self, team: &Team, name: &str) -> Result<Option<TemplateId>>;

    /// Records a snapshot of the team. Under a name that leads to a snapshot already it becomes
    /// another build of that template. Errors on the name as in
    /// [`snapshot_template`](Self::snapshot_template).
    async fn add_snapshot(&self, new: &NewSnapshot, team: &Team) -> Result<Snapshot>;

    /// All snapshots of a team, newest first.
    async fn snapshots(&self, team: Uuid) -> Result<Vec<Snapshot>>;

    /// When this database was made, to the second: what is older, it cannot know.
    async fn made_at(&self) -> Result<Timestamp>;

    /// The builds of all teams' templates and snapshots that are there, or are to be: what a node
    /// has besides is nobody's.
    async fn known_builds(&self) -> Result<Vec<Uuid>>;

    /// The team's templates and the global ones that have a ready build, oldest first.
    async fn templates(&self, team: &Team) -> Result<Vec<Template>>;

    /// Lets every team use a template, or its own alone. With `reserve` a template that becomes
    /// public gets its first alias in the global namespace, too: `CONFLICT` if that is taken. Returns
    /// its qualified names.
    async fn set_public(
        &self,
        template: &TemplateId,
        public: bool,
        reserve: bool,
    ) -> Result<Vec<String>>;

    /// Registers a build of the team's template of that alias, or of a new one. Builds of the
    /// template with a tag of these that wait fail as superseded. `CONFLICT` or `FORBIDDEN` with the
    /// contract's message when the alias is taken by something else, `BUILD_LIMIT` when the team has
    /// as many builds under way as it may; nothing has changed then.
    async fn register_build(&self, new: &NewTemplateBuild, team: &Team) -> Result<Registered>;

    /// Lets a build that waits be under way. Others of its template with a tag of its that were
    /// under way have failed as superseded then, and are returned. `INVALID_REQUEST` with the
    /// contract's message if it does not wait.
    async fn start_build(&self, build: Uuid) -> Result<Vec<Uuid>>;

    /// A build, unless its template was deleted.
    async fn build(&self, id: Uuid) -> Result<Option<BuildRecord>>;

    /// All builds of a template.
    async fn template_builds(&self, template: &TemplateId) -> Result<Vec<BuildRecord>>;

    /// The builds of all teams that are under way.
    async fn builds_under_way(&self) -> Result<Vec<Uuid>>;

    /// Takes in what happened to builds, all of it or nothing. A build that is over does not change
    /// any more: those that became ready though nobody waits for them are returned.
    async fn record_build_events(&self, events: &[(Uuid, BuildEvent)]) -> Result<Vec<Uuid>>;

    /// Lines of a build's log, in the order in which they were stored or in its reverse.
    async fn build_log(&self, query: &BuildLogQuery) -> Result<Vec<BuildLine>>;

    /// Deletes lines of builds' logs of before `before`, and of what is left all but the `keep` that
    /// came last.
    async fn prune_build_logs(&self, before: Timestamp, keep: u32) -> Result<()>;

    /// All tags that were given to ready builds of a template, the last first.
    async fn tag_assignments(&self, template: &TemplateId) -> Result<Vec<TagAssignment>>;

    /// Lets tags of a template mean one of its builds.
    async fn assign_tags(&self, template: &TemplateId, build: Uuid, tags: &[String]) -> Result<()>;

    /// Takes tags away from the builds of a template that are not under way.
    async fn remove_tags(&self, template: &TemplateId, tags: &[String]) -> Result<()>;

    /// Counts one more sandbox made of `template`.
    async fn count_spawn(&self, template: &TemplateId) -> Result<()>;

    /// Stores samples.
    async fn put_metrics(&self, rows: &[MetricRow]) -> Result<()>;

    /// Samples of `sandbox` of `team` with `start <= timestamp <= end` (Unix seconds), in order of
    /// time. `None` bounds are open. Empty for another team's sandbox.
    async fn metrics(
        &self,
        team: &str,
        sandbox: &str,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Result<Vec<MetricRow>>;

    /// Deletes samples older than `before` (Unix seconds).
    async fn prune_metrics(&self, before: i64) -> Result<()>;

    /// Stores lines of logs; one that is there already is left as it is.
    async fn put_logs(&self, lines: &[LogLine]) -> Result<()>;

    /// Lines of a sandbox's log, ordered by time and then by sequence, in the direction asked for.
    /// Empty for another team's sandbox.
    async fn logs(&self, query: &LogQuery) -> Result<Vec<LogLine>>;

    /// Deletes lines of before `before`, and of what is left all but the `keep` that came last.
    async fn prune_logs(&self, before: Timestamp, keep: u32) -> Result<()>;
}
