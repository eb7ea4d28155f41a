//! Random histories against a model: whatever happens in whichever order, the catalogue shows what
//! the model does, counts exactly, and never grows a team beyond its limit by reserving.

use std::collections::{BTreeMap, BTreeSet};

use atoll_core::{
    SandboxId,
    error::codes,
    lifecycle::{Kept, State},
};
use atoll_state::catalogue::{Catalogue, Reservation};
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use tokio::runtime::Runtime;

use crate::values::{OTHER_TEAM, PAUSED, TEAM, counted, entry, id, listed};

const TEAMS: [&str; 2] = [TEAM, OTHER_TEAM];
/// Few, so that steps meet.
const SANDBOXES: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Reserve { sandbox: usize, limit: u32 },
    Drop { sandbox: usize },
    Update { sandbox: usize, state: State, revision: u64 },
    Remove { sandbox: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let sandbox = 0..SANDBOXES;
    let states = vec![
        State::Starting,
        State::Running,
        State::Snapshotting,
        State::Pausing(Kept::Frozen),
        PAUSED,
        State::Paused(Kept::Disk),
        State::Paused(Kept::Frozen),
        State::Resuming(Kept::Disk),
        State::Ending,
    ];
    prop_oneof![
        4 => (sandbox.clone(), 0..6_u32)
            .prop_map(|(sandbox, limit)| Step::Reserve { sandbox, limit }),
        3 => sandbox.clone().prop_map(|sandbox| Step::Drop { sandbox }),
        6 => (sandbox.clone(), select(states), 0..20_u64)
            .prop_map(|(sandbox, state, revision)| Step::Update { sandbox, state, revision }),
        1 => sandbox.prop_map(|sandbox| Step::Remove { sandbox }),
    ]
}

fn name(sandbox: usize) -> SandboxId {
    id(&format!("i{sandbox}"))
}

/// A sandbox is of one team for good.
fn team_of(sandbox: usize) -> &'static str {
    TEAMS[sandbox % TEAMS.len()]
}

/// What the catalogue should hold of one sandbox.
#[derive(Default)]
struct Expected {
    said: Option<(State, u64)>,
    places: Vec<Box<dyn Reservation>>,
    ended: bool,
}

impl Expected {
    fn takes_place(&self) -> bool {
        let stands = |(state, _)| state != PAUSED && state != State::Paused(Kept::Disk);
        !self.places.is_empty() || self.said.is_some_and(stands)
    }

    fn is_shown(&self) -> bool {
        self.said.is_some_and(|(state, _)| !matches!(state, State::Starting | State::Ending))
    }
}

struct Run<C> {
    catalogue: C,
    model: BTreeMap<usize, Expected>,
}

impl<C: Catalogue> Run<C> {
    fn of<'a>(&'a self, team: &'a str) -> impl Iterator<Item = (usize, &'a Expected)> {
        let all = self.model.iter().map(|(sandbox, expected)| (*sandbox, expected));
        all.filter(move |(sandbox, _)| team_of(*sandbox) == team)
    }

    fn count(&self, team: &str) -> usize {
        self.of(team).filter(|(_, expected)| expected.takes_place()).count()
    }

    async fn apply(&mut self, step: &Step) {
        match *step {
            Step::Reserve { sandbox, limit } => self.reserve(sandbox, limit).await,
            Step::Drop { sandbox } => drop(self.expected(sandbox).places.pop()),
            Step::Update { sandbox, state, revision } => {
                let entry = entry(team_of(sandbox), &name(sandbox), state, revision);
                self.catalogue.update(entry).await.unwrap();
                let expected = self.expected(sandbox);
                let is_news = expected.said.is_none_or(|(_, known)| known < revision);
                if is_news && !expected.ended {
                    expected.said = Some((state, revision));
                }
            }
            Step::Remove { sandbox } => {
                self.catalogue.remove(&name(sandbox)).await.unwrap();
                let expected = self.expected(sandbox);
                (expected.said, expected.ended) = (None, true);
            }
        }
    }

    fn expected(&mut self, sandbox: usize) -> &mut Expected {
        self.model.entry(sandbox).or_default()
    }

    async fn reserve(&mut self, sandbox: usize, limit: u32) {
        let full = self.count(team_of(sandbox)) >= usize::try_from(limit).unwrap();
        let has_place = self.expected(sandbox).takes_place();
        match self.catalogue.reserve(team_of(sandbox), &name(sandbox), limit).await {
            Ok(place) => {
                assert!(has_place || !full, "{sandbox} got a place that is not there");
                self.expected(sandbox).places.push(place);
            }
            Err(error) => {
                assert_eq!(error.code, codes::CONCURRENCY_LIMIT);
                assert!(full && !has_place, "{error}");
            }
        }
    }

    async fn check(&self) {
        for team in TEAMS {
            let counted = counted(&self.catalogue, team).await;
            assert_eq!(usize::try_from(counted).unwrap(), self.count(team), "count of {team}");
            let shown = self.of(team).filter(|(_, expected)| expected.is_shown());
            let shown: Vec<SandboxId> = shown.map(|(sandbox, _)| name(sandbox)).collect();
            assert_eq!(listed(&self.catalogue, team).await, shown);
        }
        let ids: BTreeSet<SandboxId> = self.catalogue.ids().await.unwrap().into_iter().collect();
        let known = self.model.iter().filter(|(_, expected)| expected.said.is_some());
        assert!(ids.into_iter().eq(known.map(|(sandbox, _)| name(*sandbox))));
        for sandbox in 0..SANDBOXES {
            let shown = self.catalogue.get(&name(sandbox)).await.unwrap();
            let shown = shown.map(|entry| (entry.sandbox.state, entry.sandbox.revision));
            let expected = self.model.get(&sandbox).and_then(|expected| expected.said);
            assert_eq!(shown, expected, "{sandbox}");
        }
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
                let mut run = Run { catalogue: make(), model: BTreeMap::new() };
                for step in &steps {
                    run.apply(step).await;
                    run.check().await;
                }
                // With every sandbox gone nothing is left.
                run.model.clear();
                for sandbox in 0..SANDBOXES {
                    run.catalogue.remove(&name(sandbox)).await.unwrap();
                }
                run.check().await;
            });
            Ok(())
        })
        .unwrap();
}
