//! `GET /atoll/sandboxes/{sandboxID}/lineage`: for who wants to know where a sandbox came from, and
//! what may be deleted to get how much room.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use atoll_core::{SandboxId, TemplateId};
use atoll_state::{
    catalogue::Entry,
    model::{Snapshot, Team, Template},
};
use atoll_wire::rest::{self, LineageEntry, LineageKind, SandboxLineage};
use axum::{Json, extract::State};

use super::{find_shown, kept_of, shown_kept, shown_state};
use crate::{auth::Caller, control::Control, error::ApiResult, extract::SandboxPath};

/// Tells what a sandbox came from, and its own snapshots and forks. Takes a while: all of their files
/// are looked at. Not of E2B's protocol.
#[utoipa::path(get, path = "/atoll/sandboxes/{sandboxID}/lineage", tag = "atoll",
    params(("sandboxID" = String, Path)),
    responses(
        (status = 200, body = SandboxLineage), (status = 400, body = rest::Error),
        (status = 401, body = rest::Error), (status = 404, body = rest::Error),
        (status = 500, body = rest::Error),
    ))]
pub(crate) async fn sandbox_lineage(
    State(control): State<Arc<Control>>,
    Caller(team): Caller,
    SandboxPath(id): SandboxPath,
) -> ApiResult<Json<SandboxLineage>> {
    let entry = find_shown(&control, &team, &id).await?;
    let known = Known::gather(&control, &team).await?;
    let own = known.snapshots.iter().filter(|snapshot| snapshot.sandbox == id);
    let mut forks: Vec<&Entry> = known.forks_of(&id).collect();
    forks.sort_by_key(|fork| std::cmp::Reverse(fork.sandbox.record.started_at));
    let mut lineage = Lines {
        sandbox: Line::sandbox(&entry),
        ancestors: known.ancestors(&entry),
        snapshots: own.map(Line::snapshot).collect(),
        forks: forks.into_iter().map(Line::sandbox).collect(),
    };
    lineage.measure(&control).await?;
    Ok(Json(lineage.shown()))
}

/// All of the team that may be in a lineage.
struct Known {
    sandboxes: HashMap<SandboxId, Entry>,
    snapshots: Vec<Snapshot>,
    templates: Vec<Template>,
}

/// An entry, and the name under which the node knows how much room it takes.
struct Line {
    entry: LineageEntry,
    measured: Option<String>,
}

struct Lines {
    sandbox: Line,
    ancestors: Vec<Line>,
    snapshots: Vec<Line>,
    forks: Vec<Line>,
}

impl Line {
    fn gone(kind: LineageKind, id: &str) -> Self {
        let entry = LineageEntry {
            kind,
            id: id.to_owned(),
            name: None,
            created_at: None,
            state: None,
            kept: None,
            unique_bytes: None,
            gone: true,
        };
        Self { entry, measured: None }
    }

    fn sandbox(of: &Entry) -> Self {
        let record = &of.sandbox.record;
        let entry = LineageEntry {
            created_at: Some(record.started_at),
            state: Some(shown_state(of.sandbox.state)),
            kept: kept_of(of.sandbox.state),
            gone: false,
            ..Self::gone(LineageKind::Sandbox, record.id.as_str()).entry
        };
        Self { entry, measured: Some(record.id.to_string()) }
    }

    fn snapshot(of: &Snapshot) -> Self {
        let entry = LineageEntry {
            name: of.names.first().cloned(),
            created_at: Some(of.created_at),
            kept: Some(shown_kept(of.kept)),
            gone: false,
            ..Self::gone(LineageKind::Snapshot, &of.reference()).entry
        };
        Self { entry, measured: Some(of.build.to_string()) }
    }

    fn template(of: &Template) -> Self {
        let entry = LineageEntry {
            name: of.names.first().cloned(),
            created_at: Some(of.created_at),
            gone: false,
            ..Self::gone(LineageKind::Template, of.id.as_str()).entry
        };
        Self { entry, measured: None }
    }
}

impl Known {
    async fn gather(control: &Control, team: &Team) -> ApiResult<Self> {
        let sandboxes = control.catalogue.list(&team.id.to_string()).await?;
        let by_id = |entry: Entry| (entry.sandbox.record.id.clone(), entry);
        Ok(Self {
            sandboxes: sandboxes.into_iter().map(by_id).collect(),
            snapshots: control.database.snapshots(team.id).await?,
            templates: control.database.templates(team).await?,
        })
    }

    fn forks_of(&self, id: &SandboxId) -> impl Iterator<Item = &Entry> {
        let is_fork = move |entry: &&Entry| entry.sandbox.record.forked_from.as_ref() == Some(id);
        self.sandboxes.values().filter(is_fork)
    }

    /// What a sandbox came from, nearest first. Each came before the one in front of it, so this
    /// ends.
    fn ancestors(&self, of: &Entry) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut at = of;
        loop {
            let record = &at.sandbox.record;
            let next = match &record.forked_from {
                Some(parent) => self.parent(parent, &mut lines),
                None => None,
            };
            let next = next.or_else(|| self.template(&record.template, &record.build, &mut lines));
            match next {
                Some(next) => at = next,
                None => return lines,
            }
        }
    }

    /// Adds a sandbox; returns it if it is there.
    fn parent(&self, id: &SandboxId, lines: &mut Vec<Line>) -> Option<&Entry> {
        let parent = self.sandboxes.get(id);
        lines.push(match parent {
            Some(parent) => Line::sandbox(parent),
            None => Line::gone(LineageKind::Sandbox, id.as_str()),
        });
        parent
    }

    /// Adds a template, and what it is a snapshot of; returns the first sandbox in that line which is
    /// there. `build` tells builds of one snapshot template apart.
    fn template(&self, id: &TemplateId, build: &str, lines: &mut Vec<Line>) -> Option<&Entry> {
        let mut id = id;
        loop {
            let mut of_template = self.snapshots.iter().filter(|snapshot| snapshot.template == *id);
            let exact = of_template.clone().find(|snapshot| snapshot.build.to_string() == build);
            let Some(snapshot) = exact.or_else(|| of_template.next()) else {
                let template = self.templates.iter().find(|template| template.id == *id);
                lines.push(match template {
                    Some(template) => Line::template(template),
                    None => Line::gone(LineageKind::Template, id.as_str()),
                });
                return None;
            };
            lines.push(Line::snapshot(snapshot));
            if let Some(source) = self.parent(&snapshot.sandbox, lines) {
                return Some(source);
            }
            id = &snapshot.base;
        }
    }
}

impl Lines {
    fn all(&mut self) -> impl Iterator<Item = &mut Line> {
        let rest = [&mut self.ancestors, &mut self.snapshots, &mut self.forks];
        std::iter::once(&mut self.sandbox).chain(rest.into_iter().flatten())
    }

    async fn measure(&mut self, control: &Control) -> ApiResult<()> {
        let ids: Vec<String> = self.all().filter_map(|line| line.measured.clone()).collect();
        let spaces = control.node.space(&ids).await?;
        let bytes: BTreeMap<&str, u64> =
            spaces.iter().map(|space| (space.id.as_str(), space.unique_bytes)).collect();
        for line in self.all() {
            let measured = line.measured.as_deref();
            line.entry.unique_bytes = measured.and_then(|id| bytes.get(id).copied());
        }
        Ok(())
    }

    fn shown(self) -> SandboxLineage {
        let entries = |lines: Vec<Line>| lines.into_iter().map(|line| line.entry).collect();
        SandboxLineage {
            sandbox: self.sandbox.entry,
            ancestors: entries(self.ancestors),
            snapshots: entries(self.snapshots),
            forks: entries(self.forks),
        }
    }
}
