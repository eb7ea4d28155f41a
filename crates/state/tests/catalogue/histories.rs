//! Random histories against a model: whatever happens in whichever order, the catalogue shows what
//! the model does, counts exactly, and never grows a team beyond its limit by reserving.

use std::collections::{BTreeMap, BTreeSet};

use atoll_core::{SandboxId, error::codes};
use atoll_state::catalogue::{Catalogue, Deadline, Phase, Reservation};
use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use tokio::runtime::Runtime;

use crate::values::{OTHER_TEAM, TEAM, counted, entry, id, listed};

const TEAMS: [&str; 2] = [TEAM, OTHER_TEAM];
/// Few, so that steps meet.
const SANDBOXES: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Reserve { sandbox: usize, team: usize, limit: u32 },
    Commit { sandbox: usize, end_in: i64 },
    Drop { sandbox: usize },
    BeginKill { sandbox: usize },
    AbortKill { sandbox: usize },
    Remove { sandbox: usize },
    Adopt { sandbox: usize, team: usize, end_in: i64 },
    Set { sandbox: usize, end_in: i64 },
    Extend { sandbox: usize, end_in: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let sandbox = 0..SANDBOXES;
    let team = 0..TEAMS.len();
    // Far from the present on both sides, so that the time a history takes does not matter.
    let end_in = prop_oneof![-9000..-3000_i64, 3000..9000_i64];
    prop_oneof![
        4 => (sandbox.clone(), team.clone(), 0..6_u32)
            .prop_map(|(sandbox, team, limit)| Step::Reserve { sandbox, team, limit }),
        3 => (sandbox.clone(), end_in.clone())
            .prop_map(|(sandbox, end_in)| Step::Commit { sandbox, end_in }),
        1 => sandbox.clone().prop_map(|sandbox| Step::Drop { sandbox }),
        2 => sandbox.clone().prop_map(|sandbox| Step::BeginKill { sandbox }),
        1 => sandbox.clone().prop_map(|sandbox| Step::AbortKill { sandbox }),
        2 => sandbox.clone().prop_map(|sandbox| Step::Remove { sandbox }),
        1 => (sandbox.clone(), team, end_in.clone())
            .prop_map(|(sandbox, team, end_in)| Step::Adopt { sandbox, team, end_in }),
        1 => (sandbox.clone(), end_in.clone())
            .prop_map(|(sandbox, end_in)| Step::Set { sandbox, end_in }),
        1 => (sandbox, end_in).prop_map(|(sandbox, end_in)| Step::Extend { sandbox, end_in }),
    ]
}

/// What the catalogue should hold of one sandbox.
enum Expected {
    Starting { team: &'static str, place: Box<dyn Reservation>, ended: bool },
    Live { team: &'static str, end_at: Timestamp, killing: bool, retried: bool },
}

impl Expected {
    fn team(&self) -> &'static str {
        match self {
            Self::Starting { team, .. } | Self::Live { team, .. } => team,
        }
    }
}

struct Run<C> {
    catalogue: C,
    start: Timestamp,
    model: BTreeMap<SandboxId, Expected>,
}

fn name(sandbox: usize) -> SandboxId {
    id(&format!("i{sandbox}"))
}

impl<C: Catalogue> Run<C> {
    fn at(&self, end_in: i64) -> Timestamp {
        self.start + SignedDuration::from_secs(end_in)
    }

    fn count(&self, team: &str) -> usize {
        self.model.values().filter(|expected| expected.team() == team).count()
    }

    async fn apply(&mut self, step: &Step) {
        match *step {
            Step::Reserve { sandbox, team, limit } => {
                self.reserve(name(sandbox), TEAMS[team], limit).await;
            }
            Step::Commit { sandbox, end_in } => self.commit(name(sandbox), self.at(end_in)),
            Step::Drop { sandbox } => {
                let id = name(sandbox);
                if matches!(self.model.get(&id), Some(Expected::Starting { .. })) {
                    self.model.remove(&id);
                }
            }
            Step::BeginKill { sandbox } => self.begin_kill(&name(sandbox)).await,
            Step::AbortKill { sandbox } => {
                let id = name(sandbox);
                self.catalogue.abort_kill(&id).await.unwrap();
                if let Some(Expected::Live { killing: killing @ true, retried, .. }) =
                    self.model.get_mut(&id)
                {
                    (*killing, *retried) = (false, true);
                }
            }
            Step::Remove { sandbox } => {
                let id = name(sandbox);
                self.catalogue.remove(&id).await.unwrap();
                match self.model.get_mut(&id) {
                    Some(Expected::Starting { ended, .. }) => *ended = true,
                    _ => drop(self.model.remove(&id)),
                }
            }
            Step::Adopt { sandbox, team, end_in } => {
                let (id, team, end_at) = (name(sandbox), TEAMS[team], self.at(end_in));
                self.catalogue.adopt(entry(team, &id, end_at)).await.unwrap();
                self.model.entry(id).or_insert(Expected::Live {
                    team,
                    end_at,
                    killing: false,
                    retried: false,
                });
            }
            Step::Set { sandbox, end_in } => {
                self.move_deadline(name(sandbox), Deadline::Set(self.at(end_in))).await;
            }
            Step::Extend { sandbox, end_in } => {
                self.move_deadline(name(sandbox), Deadline::Extend(self.at(end_in))).await;
            }
        }
    }

    async fn reserve(&mut self, id: SandboxId, team: &'static str, limit: u32) {
        let known = self.model.contains_key(&id);
        let full = self.count(team) >= usize::try_from(limit).unwrap();
        match self.catalogue.reserve(team, &id, limit).await {
            Ok(place) => {
                assert!(!known && !full, "{id} got a place that is not there");
                self.model.insert(id, Expected::Starting { team, place, ended: false });
            }
            Err(error) if error.code == codes::CONFLICT => assert!(known, "{error}"),
            Err(error) => {
                assert_eq!(error.code, codes::CONCURRENCY_LIMIT);
                assert!(full, "{error}");
            }
        }
    }

    fn commit(&mut self, id: SandboxId, end_at: Timestamp) {
        match self.model.remove(&id) {
            Some(Expected::Starting { team, place, ended }) => {
                place.commit(entry(team, &id, end_at));
                if !ended {
                    let live = Expected::Live { team, end_at, killing: false, retried: false };
                    self.model.insert(id, live);
                }
            }
            Some(live) => drop(self.model.insert(id, live)),
            None => {}
        }
    }

    async fn begin_kill(&mut self, id: &SandboxId) {
        let won = self.catalogue.begin_kill(id).await.unwrap();
        match self.model.get_mut(id) {
            Some(Expected::Live { killing, .. }) => {
                assert_eq!(won, !*killing);
                *killing = true;
            }
            _ => assert!(!won),
        }
    }

    async fn move_deadline(&mut self, id: SandboxId, deadline: Deadline) {
        let answer = self.catalogue.set_deadline(&id, deadline).await.unwrap();
        let Some(Expected::Live { end_at, killing, retried, .. }) = self.model.get_mut(&id) else {
            assert!(answer.is_none());
            return;
        };
        let target = match deadline {
            Deadline::Set(at) => at,
            Deadline::Extend(at) => at.max(*end_at),
        };
        if !*killing && target != *end_at {
            (*end_at, *retried) = (target, false);
        }
        assert_eq!(answer.unwrap().record.end_at, *end_at);
    }

    async fn check(&self) {
        for team in TEAMS {
            let counted = counted(&self.catalogue, team).await;
            assert_eq!(usize::try_from(counted).unwrap(), self.count(team), "count of {team}");
            let running: Vec<SandboxId> = self.running(|of| of == team).cloned().collect();
            assert_eq!(listed(&self.catalogue, team).await, running);
        }
        let ids: BTreeSet<SandboxId> = self.catalogue.ids().await.unwrap().into_iter().collect();
        assert!(ids.iter().eq(self.running(|_| true)));
        for id in (0..SANDBOXES).map(name) {
            let shown = self.catalogue.get(&id).await.unwrap();
            let shown = shown.map(|entry| (entry.record.end_at, entry.phase == Phase::Killing));
            let expected = match self.model.get(&id) {
                Some(Expected::Live { end_at, killing, .. }) => Some((*end_at, *killing)),
                _ => None,
            };
            assert_eq!(shown, expected, "{id}");
        }
        self.check_expired().await;
    }

    fn running(&self, team: impl Fn(&str) -> bool) -> impl Iterator<Item = &SandboxId> {
        self.model.iter().filter_map(move |(id, expected)| match expected {
            Expected::Live { team: of, killing: false, .. } if team(of) => Some(id),
            _ => None,
        })
    }

    /// Whose time is over must be reported, who came back from a failed kill may be.
    async fn check_expired(&self) {
        let mut must = BTreeSet::new();
        let mut may = BTreeSet::new();
        for (id, expected) in &self.model {
            if let Expected::Live { end_at, killing: false, retried, .. } = expected
                && *end_at < self.start
            {
                may.insert(id.clone());
                if !*retried {
                    must.insert(id.clone());
                }
            }
        }
        let due = if must.is_empty() {
            self.catalogue.expired().now_or_never().map(Result::unwrap).unwrap_or_default()
        } else {
            self.catalogue.expired().await.unwrap()
        };
        let due: BTreeSet<SandboxId> = due.into_iter().collect();
        assert!(due.is_superset(&must), "{due:?} lacks some of {must:?}");
        assert!(due.is_subset(&may), "{due:?} has more than {may:?}");
    }
}

pub(crate) fn any_history_keeps_the_counts_exact<C: Catalogue>(
    runtime: &Runtime,
    make: impl Fn() -> C,
) {
    let histories = vec(step(), 1..60);
    TestRunner::default()
        .run(&histories, |steps| {
            runtime.block_on(async {
                let mut run =
                    Run { catalogue: make(), start: Timestamp::now(), model: BTreeMap::new() };
                for step in &steps {
                    run.apply(step).await;
                    run.check().await;
                }
                // With every sandbox gone nothing is left.
                run.model.clear();
                for id in (0..SANDBOXES).map(name) {
                    run.catalogue.remove(&id).await.unwrap();
                }
                run.check().await;
            });
            Ok(())
        })
        .unwrap();
}
