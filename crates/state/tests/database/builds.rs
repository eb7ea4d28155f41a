//! Builds of templates: their life, their logs and their tags.

use atoll_core::{TemplateId, error::codes, limits::MOST_BUILD_LINES};
use atoll_state::{
    Database,
    builds::{
        BuildLogQuery, BuildLogStart, BuildRecord, BuildStatus, NewTemplateBuild, Registered,
        SUPERSEDED,
    },
    model::{Build, Direction, Team},
};
use atoll_wire::{
    build::{BuildEvent, BuildFailure, BuildLine},
    log::LogLevel,
};
use futures::future::join_all;
use jiff::Timestamp;
use uuid::Uuid;

use crate::fixture::{Fixture, new_build, reference};

fn new(alias: &str, tags: &[&str]) -> NewTemplateBuild {
    NewTemplateBuild {
        template: TemplateId::generate().unwrap(),
        alias: alias.to_owned(),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        build: Build { envd_version: String::new(), ..new_build(alias).build },
    }
}

async fn register(
    fixture: &impl Fixture,
    team: &Team,
    alias: &str,
    tags: &[&str],
) -> (Registered, Uuid) {
    let new = new(alias, tags);
    (fixture.db().register_build(&new, team).await.unwrap(), new.build.id)
}

async fn build(fixture: &impl Fixture, id: Uuid) -> BuildRecord {
    fixture.db().build(id).await.unwrap().unwrap()
}

async fn status(fixture: &impl Fixture, id: Uuid) -> BuildStatus {
    build(fixture, id).await.status
}

fn ready() -> BuildEvent {
    BuildEvent::Ready { envd_version: "0.6.4".to_owned() }
}

fn failure(message: &str) -> BuildFailure {
    BuildFailure {
        step: Some("2".to_owned()),
        code: codes::STEP_FAILED.to_string(),
        message: message.to_owned(),
        parent: Some("parent".to_owned()),
    }
}

fn line(second: i64, level: LogLevel, message: &str) -> BuildLine {
    BuildLine {
        timestamp: Timestamp::from_second(second).unwrap(),
        level,
        step: Some("1".to_owned()),
        message: message.to_owned(),
    }
}

async fn tell(fixture: &impl Fixture, build: Uuid, event: BuildEvent) -> Vec<Uuid> {
    fixture.db().record_build_events(&[(build, event)]).await.unwrap()
}

/// A build that is ready.
async fn built(fixture: &impl Fixture, team: &Team, alias: &str, tags: &[&str]) -> Uuid {
    let (_, id) = register(fixture, team, alias, tags).await;
    fixture.db().start_build(id).await.unwrap();
    assert!(tell(fixture, id, ready()).await.is_empty());
    id
}

async fn messages(
    fixture: &impl Fixture,
    build: Uuid,
    level: LogLevel,
    limit: u32,
    from: BuildLogStart,
) -> Vec<String> {
    let query = BuildLogQuery { build, level, limit, from };
    let lines = fixture.db().build_log(&query).await.unwrap();
    lines.into_iter().map(|line| line.message).collect()
}

async fn log(fixture: &impl Fixture, build: Uuid) -> Vec<String> {
    messages(fixture, build, LogLevel::Debug, 1000, BuildLogStart::Offset(0)).await
}

pub(crate) async fn a_build_is_registered_started_and_ready(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let db = fixture.db();
    let (registered, id) = register(fixture, &team, "mine", &["default", "v1"]).await;
    assert_eq!(registered.names, ["dev/mine"]);
    assert_eq!(
        (registered.aliases.as_slice(), registered.public),
        (["mine".into()].as_slice(), false)
    );
    let waiting = build(fixture, id).await;
    assert_eq!((waiting.status, waiting.team), (BuildStatus::Waiting, team.id));
    assert_eq!((&waiting.template, waiting.alias.as_deref()), (&registered.template, Some("mine")));
    assert_eq!((waiting.failure, waiting.finished_at), (None, None));
    assert!(db.builds_under_way().await.unwrap().is_empty());
    assert_eq!(db.known_builds().await.unwrap(), [id]);

    assert!(db.start_build(id).await.unwrap().is_empty());
    assert_eq!(status(fixture, id).await, BuildStatus::Building);
    assert_eq!(db.builds_under_way().await.unwrap(), [id]);
    let refused = db.start_build(id).await.unwrap_err();
    assert_eq!(refused.code, codes::INVALID_REQUEST);
    assert_eq!(refused.message, "build is not in waiting state");
    assert!(db.resolve_template(&reference("mine"), &team).await.is_err());

    assert!(tell(fixture, id, ready()).await.is_empty());
    // Told again, it is as before.
    assert!(tell(fixture, id, ready()).await.is_empty());
    let done = build(fixture, id).await;
    assert_eq!((done.status, done.build.envd_version.as_str()), (BuildStatus::Ready, "0.6.4"));
    assert!(done.finished_at.unwrap() >= done.created_at);
    for text in ["mine", "mine:v1", "dev/mine:default"] {
        let found = db.resolve_template(&reference(text), &team).await.unwrap();
        assert_eq!((found.build.id, found.template), (id, registered.template.clone()), "{text}");
    }

    let second = built(fixture, &team, "mine", &["default"]).await;
    let found = db.resolve_template(&reference("mine"), &team).await.unwrap();
    assert_eq!((found.build.id, &found.template), (second, &registered.template));
    let v1 = db.resolve_template(&reference("mine:v1"), &team).await.unwrap();
    assert_eq!(v1.build.id, id);
    let all = db.template_builds(&registered.template).await.unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(db.templates(&team).await.unwrap()[0].build_count, 2);
}

pub(crate) async fn a_failed_build_keeps_its_reason(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let good = built(fixture, &team, "mine", &["default"]).await;
    let (registered, id) = register(fixture, &team, "mine", &["default"]).await;
    fixture.db().start_build(id).await.unwrap();
    tell(fixture, id, BuildEvent::Failed(failure("it ended with 7"))).await;
    let failed = build(fixture, id).await;
    assert_eq!(
        (failed.status, failed.failure),
        (BuildStatus::Failed, Some(failure("it ended with 7")))
    );
    assert!(failed.finished_at.is_some());
    // The one before is what the tag means.
    let found = fixture.db().resolve_template(&reference("mine"), &team).await.unwrap();
    assert_eq!(found.build.id, good);
    let listed = fixture.db().templates(&team).await.unwrap().remove(0);
    assert_eq!((listed.id, listed.build.id), (registered.template, good));
    assert_eq!(listed.status, BuildStatus::Failed);
    assert_eq!(fixture.db().known_builds().await.unwrap(), [good]);
}

pub(crate) async fn what_is_over_does_not_change(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let (_, id) = register(fixture, &team, "mine", &["default"]).await;
    // It was not even started.
    assert_eq!(tell(fixture, id, ready()).await, [id]);
    fixture.db().start_build(id).await.unwrap();
    tell(fixture, id, BuildEvent::Failed(failure("first"))).await;
    tell(fixture, id, BuildEvent::Failed(failure("second"))).await;
    tell(fixture, id, BuildEvent::Line(line(1, LogLevel::Info, "late"))).await;
    assert_eq!(tell(fixture, id, ready()).await, [id]);
    let record = build(fixture, id).await;
    assert_eq!((record.status, record.failure), (BuildStatus::Failed, Some(failure("first"))));
    assert!(log(fixture, id).await.is_empty());

    let done = built(fixture, &team, "other", &["default"]).await;
    tell(fixture, done, BuildEvent::Failed(failure("late"))).await;
    assert_eq!(status(fixture, done).await, BuildStatus::Ready);
    let unknown = Uuid::new_v4();
    let events = [
        (unknown, BuildEvent::Line(line(1, LogLevel::Info, "x"))),
        (unknown, BuildEvent::Failed(failure("x"))),
        (unknown, ready()),
    ];
    assert_eq!(fixture.db().record_build_events(&events).await.unwrap(), [unknown]);
    assert!(fixture.db().build(unknown).await.unwrap().is_none());
}

pub(crate) async fn builds_of_one_tag_take_each_others_place(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let db = fixture.db();
    let superseded = async |id| {
        let record = build(fixture, id).await;
        let failure = record.failure.unwrap();
        assert_eq!((failure.message.as_str(), failure.step), (SUPERSEDED, None));
        assert_eq!(failure.code, codes::BUILD_CANCELLED.to_string());
        assert_eq!(log(fixture, id).await, [SUPERSEDED]);
        record.status == BuildStatus::Failed
    };
    let (_, waiting) = register(fixture, &team, "mine", &["a", "b"]).await;
    let (_, apart) = register(fixture, &team, "mine", &["c"]).await;
    let (_, other) = register(fixture, &team, "other", &["a", "b"]).await;
    let (_, running) = register(fixture, &team, "mine", &["b", "d"]).await;
    assert!(superseded(waiting).await);
    assert_eq!(db.start_build(waiting).await.unwrap_err().code, codes::INVALID_REQUEST);
    for id in [apart, other, running] {
        assert!(db.start_build(id).await.unwrap().is_empty());
    }
    // It takes the place of one that runs when it runs itself, not before.
    let (_, next) = register(fixture, &team, "mine", &["d"]).await;
    assert_eq!(status(fixture, running).await, BuildStatus::Building);
    assert_eq!(db.start_build(next).await.unwrap(), [running]);
    assert!(superseded(running).await);
    for id in [apart, other, next] {
        assert_eq!(status(fixture, id).await, BuildStatus::Building);
    }
    assert_eq!(tell(fixture, running, ready()).await, [running], "nobody waits for it any more");
}

pub(crate) async fn the_limit_counts_what_is_under_way(fixture: &impl Fixture) {
    fixture.seed().await;
    fixture.execute("UPDATE tiers SET concurrent_template_builds = 2").await;
    let (team, other) = (fixture.seed().await, fixture.other_team().await);
    let db = fixture.db();
    let (_, first) = register(fixture, &team, "one", &["default"]).await;
    db.start_build(first).await.unwrap();
    let (_, second) = register(fixture, &team, "two", &["default"]).await;
    let refused = db.register_build(&new("three", &["default"]), &team).await.unwrap_err();
    assert_eq!(refused.code, codes::BUILD_LIMIT);
    assert!(refused.message.contains("2 builds"), "{refused}");
    assert!(db.find_template(&reference("three"), &team).await.is_err(), "it left a template");
    register(fixture, &other, "three", &["default"]).await;
    // In the place of others there is place.
    let (_, again) = register(fixture, &team, "two", &["default"]).await;
    assert_eq!(status(fixture, second).await, BuildStatus::Failed);
    register(fixture, &team, "one", &["default"]).await;
    assert_eq!(status(fixture, first).await, BuildStatus::Building);
    let refused = db.register_build(&new("two", &["v2"]), &team).await.unwrap_err();
    assert_eq!(refused.code, codes::BUILD_LIMIT);
    assert_eq!(status(fixture, again).await, BuildStatus::Waiting, "half of it was done");
    // What was registered long ago and never started does not count.
    fixture.execute("UPDATE env_builds SET created_at = 1").await;
    register(fixture, &team, "three", &["default"]).await;
}

pub(crate) async fn names_that_are_taken_are_refused(fixture: &impl Fixture) {
    let (team, other) = (fixture.seed().await, fixture.other_team().await);
    let db = fixture.db();
    let base = db.publish_global_template(&new_build("base"), team.id).await.unwrap();
    fixture.template("shot", &team, "dev", "snap", false).await;
    fixture.execute("UPDATE envs SET source = 'snapshot_template' WHERE id = 'shot'").await;
    for (alias, status, message) in [
        ("base", 403, "Alias 'base' already used".to_owned()),
        ("snap", 409, "Alias 'snap' is already used".to_owned()),
        (base.as_str(), 409, format!("Alias '{base}' is already used")),
    ] {
        let refused = db.register_build(&new(alias, &["default"]), &team).await.unwrap_err();
        assert_eq!((refused.code.status, refused.message), (status, message));
    }
    // Each team has names of its own.
    let (own, _) = register(fixture, &team, "same", &["default"]).await;
    let (theirs, _) = register(fixture, &other, "same", &["default"]).await;
    assert_ne!(own.template, theirs.template);
    assert_eq!(theirs.names, ["other/same"]);
}

pub(crate) async fn concurrent_registrations_make_one_template(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let db = fixture.db();
    let all: Vec<_> = (0..8).map(|_| new("mine", &["default"])).collect();
    let registered = join_all(all.iter().map(|new| db.register_build(new, &team))).await;
    let templates: Vec<_> = registered.into_iter().map(|it| it.unwrap().template).collect();
    assert!(templates.iter().all(|template| *template == templates[0]));
    let builds = db.template_builds(&templates[0]).await.unwrap();
    let waiting = builds.iter().filter(|build| build.status == BuildStatus::Waiting).count();
    assert_eq!((builds.len(), waiting), (8, 1));
}

pub(crate) async fn a_deleted_template_ends_its_builds(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let db = fixture.db();
    let ready = built(fixture, &team, "mine", &["v1"]).await;
    let (registered, running) = register(fixture, &team, "mine", &["v2"]).await;
    db.start_build(running).await.unwrap();
    let (_, waiting) = register(fixture, &team, "mine", &["v3"]).await;
    db.remove_tags(&registered.template, &["v1".to_owned()]).await.unwrap();
    let mut builds = db.delete_template(&registered.template).await.unwrap().unwrap();
    let mut expected = [ready, running, waiting];
    builds.sort();
    expected.sort();
    assert_eq!(builds, expected);
    for id in expected {
        assert!(db.build(id).await.unwrap().is_none());
    }
    assert!(db.known_builds().await.unwrap().is_empty());
    assert!(db.builds_under_way().await.unwrap().is_empty());
    assert!(db.start_build(waiting).await.is_err());
    assert!(db.templates(&team).await.unwrap().is_empty());
    let (again, _) = register(fixture, &team, "mine", &["v1"]).await;
    assert_ne!(again.template, registered.template);
}

pub(crate) async fn logs_only_grow_and_are_read_from_anywhere(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let (_, id) = register(fixture, &team, "mine", &["default"]).await;
    let (_, other) = register(fixture, &team, "other", &["default"]).await;
    let levels = [LogLevel::Debug, LogLevel::Info, LogLevel::Warn, LogLevel::Error];
    let lines: Vec<_> = levels.iter().cycle().take(10).zip(0..).collect();
    for (level, number) in &lines {
        let event = BuildEvent::Line(line(*number, **level, &number.to_string()));
        let foreign = BuildEvent::Line(line(*number, **level, "foreign"));
        fixture.db().record_build_events(&[(id, event), (other, foreign)]).await.unwrap();
    }
    use BuildLogStart::{Offset, Time};
    let at = |second| Timestamp::from_second(second).unwrap();
    let (debug, warn) = (LogLevel::Debug, LogLevel::Warn);
    for (level, limit, from, expected) in [
        (debug, 3, Offset(0), "012"),
        (debug, 3, Offset(8), "89"),
        (debug, 3, Offset(10), ""),
        (debug, 3, Offset(u64::MAX), ""),
        (debug, 0, Offset(0), ""),
        (warn, 3, Offset(0), "236"),
        (warn, 3, Offset(3), "7"),
        (debug, 2, Time(at(4), Direction::Forward), "45"),
        (debug, 2, Time(at(4), Direction::Backward), "32"),
        (warn, 9, Time(at(7), Direction::Backward), "632"),
    ] {
        let found = messages(fixture, id, level, limit, from).await.concat();
        assert_eq!(found, expected, "{level:?} {limit} {from:?}");
    }
    let query = BuildLogQuery { build: id, level: debug, limit: 1, from: Offset(2) };
    let found = fixture.db().build_log(&query).await.unwrap();
    assert_eq!(found, [line(2, LogLevel::Warn, "2")]);
}

pub(crate) async fn a_log_has_an_end(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let (_, id) = register(fixture, &team, "mine", &["default"]).await;
    fixture.execute(&format!("UPDATE env_builds SET log_lines = {}", MOST_BUILD_LINES - 2)).await;
    for number in 0..4 {
        tell(fixture, id, BuildEvent::Line(line(number, LogLevel::Info, "x"))).await;
    }
    assert_eq!(log(fixture, id).await, ["x", "The log is full: later lines are left out."]);
}

pub(crate) async fn old_lines_are_pruned(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let (_, id) = register(fixture, &team, "mine", &["default"]).await;
    for number in 0..6 {
        tell(fixture, id, BuildEvent::Line(line(number, LogLevel::Info, &number.to_string())))
            .await;
    }
    let db = fixture.db();
    db.prune_build_logs(Timestamp::from_second(2).unwrap(), 100).await.unwrap();
    assert_eq!(log(fixture, id).await.concat(), "2345");
    db.prune_build_logs(Timestamp::UNIX_EPOCH, 2).await.unwrap();
    assert_eq!(log(fixture, id).await.concat(), "45");
}

pub(crate) async fn tags_move_and_go(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let db = fixture.db();
    let first = built(fixture, &team, "mine", &["default", "v1"]).await;
    let second = built(fixture, &team, "mine", &["default"]).await;
    let template = build(fixture, first).await.template;
    let (_, running) = register(fixture, &team, "mine", &["next"]).await;
    let all = async || {
        let all = db.tag_assignments(&template).await.unwrap();
        assert!(all.is_sorted_by(|a, b| a.id > b.id));
        all.into_iter().map(|it| (it.tag, it.build)).collect::<Vec<_>>()
    };
    let tag = |tag: &str, build| (tag.to_owned(), build);
    let before = [tag("default", second), tag("v1", first), tag("default", first)];
    assert_eq!(all().await, before, "what is not ready has no tags");
    let moved = ["v1".to_owned(), "stable".to_owned()];
    db.assign_tags(&template, second, &moved).await.unwrap();
    let resolve = async |text: &str| {
        db.resolve_template(&reference(text), &team).await.map(|found| found.build.id).ok()
    };
    assert_eq!(resolve("mine:v1").await, Some(second));
    assert_eq!(resolve("mine:stable").await, Some(second));
    let gone = ["v1".to_owned(), "next".to_owned(), "never".to_owned()];
    db.remove_tags(&template, &gone).await.unwrap();
    assert_eq!(resolve("mine:v1").await, None);
    assert_eq!(all().await.len(), 3);
    // The one that was under way has the tag it was asked for, and each is there by its id.
    db.start_build(running).await.unwrap();
    tell(fixture, running, ready()).await;
    assert_eq!(resolve("mine:next").await, Some(running));
    db.remove_tags(&template, &["next".to_owned()]).await.unwrap();
    assert_eq!(resolve(&format!("mine:{running}")).await, Some(running));
}

pub(crate) async fn a_public_template_may_have_a_global_name(fixture: &impl Fixture) {
    let (team, other) = (fixture.seed().await, fixture.other_team().await);
    let db = fixture.db();
    let id = built(fixture, &team, "mine", &["default"]).await;
    let template = build(fixture, id).await.template;
    assert_eq!(db.set_public(&template, true, false).await.unwrap(), ["dev/mine"]);
    assert!(db.resolve_template(&reference("dev/mine"), &other).await.is_ok());
    assert!(db.resolve_template(&reference("mine"), &other).await.is_err());
    assert_eq!(db.set_public(&template, true, true).await.unwrap(), ["dev/mine", "mine"]);
    assert_eq!(db.set_public(&template, true, true).await.unwrap(), ["dev/mine", "mine"]);
    assert!(db.resolve_template(&reference("mine"), &other).await.is_ok());
    let named = db.find_template(&reference("mine"), &other).await.unwrap();
    assert!(named.is_public && !named.is_own && !named.is_shipped);
    // Its own team builds it under that name as before, and others do not.
    let (again, _) = register(fixture, &team, "mine", &["default"]).await;
    assert_eq!(again.template, template);
    assert_eq!(
        db.register_build(&new("mine", &["default"]), &other).await.unwrap_err().code,
        codes::FORBIDDEN
    );
    let second = built(fixture, &team, "second", &["default"]).await;
    let second = build(fixture, second).await.template;
    fixture.alias(base_of(fixture, &team).await.as_str(), "", "second").await;
    let refused = db.set_public(&second, true, true).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (codes::CONFLICT, "Alias 'second' is already used")
    );
    assert!(!db.find_template(&reference("second"), &team).await.unwrap().is_public);
    assert!(db.set_public(&template, false, false).await.is_ok());
    assert!(db.resolve_template(&reference("dev/mine"), &other).await.is_err());
}

async fn base_of(fixture: &impl Fixture, team: &Team) -> TemplateId {
    let base = fixture.db().publish_global_template(&new_build("base"), team.id).await.unwrap();
    let named = fixture.db().find_template(&reference("base"), team).await.unwrap();
    assert!(named.is_shipped);
    base
}
