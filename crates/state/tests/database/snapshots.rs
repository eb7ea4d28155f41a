//! Snapshots: what is recorded of them, under which names, and how they go.

use atoll_core::{error::codes, lifecycle::Kept};
use atoll_state::{
    Database,
    model::{Build, NewSnapshot, Snapshot, Team},
};
use uuid::Uuid;

use crate::fixture::{Fixture, new_build, reference};

const BASE: &str = "base0000000000000000";

/// A snapshot of `sandbox`, of a template of its own unless its name leads to one.
fn new_snapshot(sandbox: &str, name: Option<&str>, tag: &str) -> NewSnapshot {
    NewSnapshot {
        template: Uuid::new_v4().simple().to_string()[..20].parse().unwrap(),
        name: name.map(str::to_owned),
        tag: tag.to_owned(),
        build: Build { id: Uuid::new_v4(), ..new_build("x").build },
        sandbox: sandbox.parse().unwrap(),
        base: BASE.parse().unwrap(),
        kept: Kept::Checkpoint,
    }
}

async fn add(fixture: &impl Fixture, team: &Team, new: &NewSnapshot) -> Snapshot {
    fixture.db().add_snapshot(new, team).await.unwrap()
}

async fn references(fixture: &impl Fixture, team: &Team) -> Vec<String> {
    let snapshots = fixture.db().snapshots(team.id).await.unwrap();
    snapshots.iter().map(Snapshot::reference).collect()
}

pub(crate) async fn a_snapshot_is_found_by_its_reference(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let plain = new_snapshot("i1", None, "default");
    let named = NewSnapshot { kept: Kept::Disk, ..new_snapshot("i1", Some("mine"), "v1") };
    for (new, expected, names) in [
        (&plain, format!("{}:default", plain.template), vec![]),
        (&named, "dev/mine:v1".to_owned(), vec!["dev/mine".to_owned()]),
    ] {
        let added = add(fixture, &team, new).await;
        assert_eq!((added.reference(), &added.names), (expected.clone(), &names));
        assert_eq!((added.build, added.kept, &added.tag), (new.build.id, new.kept, &new.tag));
        assert_eq!((&added.sandbox, &added.base), (&new.sandbox, &new.base));
        let found = fixture.db().resolve_template(&reference(&expected), &team).await.unwrap();
        assert_eq!((&found.build, &found.template), (&new.build, &new.template));
    }
    assert!(fixture.db().templates(&team).await.unwrap().is_empty(), "they are no templates");
    let mut builds = fixture.db().known_builds().await.unwrap();
    builds.sort();
    let mut added = [plain.build.id, named.build.id];
    added.sort();
    assert_eq!(builds, added);
}

pub(crate) async fn the_same_name_again_is_another_build(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let first = add(fixture, &team, &new_snapshot("i1", Some("mine"), "default")).await;
    let known = fixture.db().snapshot_template(&team, "mine").await.unwrap();
    assert_eq!(known.as_ref(), Some(&first.template));
    let tagged = add(fixture, &team, &new_snapshot("i1", Some("mine"), "v1")).await;
    let second = add(fixture, &team, &new_snapshot("i2", Some("mine"), "default")).await;
    assert_eq!((&second.template, &tagged.template), (&first.template, &first.template));
    // Newest first; the first is reached by its build alone now.
    let by_build = format!("dev/mine:{}", first.build);
    assert_eq!(references(fixture, &team).await, ["dev/mine:default", "dev/mine:v1", &by_build]);
    for (text, build) in
        [("mine", second.build), ("mine:v1", tagged.build), (&by_build, first.build)]
    {
        let found = fixture.db().resolve_template(&reference(text), &team).await.unwrap();
        assert_eq!(found.build.id, build, "{text}");
    }
}

pub(crate) async fn names_that_mean_something_else_are_refused(fixture: &impl Fixture) {
    let (team, other) = (fixture.seed().await, fixture.other_team().await);
    fixture.db().publish_global_template(&new_build("base"), other.id).await.unwrap();
    fixture.template("abc", &team, "dev", "taken", false).await;
    for (name, code, message) in [
        ("base", codes::FORBIDDEN, "Alias 'base' already used"),
        ("taken", codes::CONFLICT, "Alias 'taken' is already used"),
        ("abc", codes::CONFLICT, "Alias 'abc' is already used"),
    ] {
        let new = new_snapshot("i1", Some(name), "default");
        let refused = fixture.db().add_snapshot(&new, &team).await.unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (code, message));
        let refused = fixture.db().snapshot_template(&team, name).await.unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (code, message));
    }
    assert!(fixture.db().snapshots(team.id).await.unwrap().is_empty());
    // A name of one team is free for another.
    add(fixture, &other, &new_snapshot("i1", Some("taken"), "default")).await;
    assert_eq!(references(fixture, &other).await, ["other/taken:default"]);
    assert!(references(fixture, &team).await.is_empty());
}

pub(crate) async fn a_deleted_snapshot_is_gone_and_its_name_is_free(fixture: &impl Fixture) {
    let (team, other) = (fixture.seed().await, fixture.other_team().await);
    let db = fixture.db();
    let first = add(fixture, &team, &new_snapshot("i1", Some("mine"), "default")).await;
    let second = add(fixture, &team, &new_snapshot("i1", Some("mine"), "v1")).await;
    let kept = add(fixture, &team, &new_snapshot("i1", None, "default")).await;
    let named = db.find_template(&reference("dev/mine:whatever"), &team).await.unwrap();
    assert_eq!((&named.template, named.is_own, named.is_snapshot), (&first.template, true, true));
    assert!(!named.is_public);
    assert_eq!(
        db.find_template(&reference("dev/mine"), &other).await.unwrap_err().code.status,
        404
    );

    let mut builds = db.delete_template(&first.template).await.unwrap().unwrap();
    builds.sort();
    let mut expected = [first.build, second.build];
    expected.sort();
    assert_eq!(builds, expected);
    assert_eq!(db.delete_template(&first.template).await.unwrap(), None);
    for text in ["mine", "mine:v1", first.template.as_str()] {
        assert_eq!(db.find_template(&reference(text), &team).await.unwrap_err().code.status, 404);
        let refused = db.resolve_template(&reference(text), &team).await.unwrap_err();
        assert_eq!(refused.code.status, 404, "{text}");
    }
    assert_eq!(references(fixture, &team).await, [kept.reference()]);
    assert_eq!(db.known_builds().await.unwrap(), [kept.build]);

    // As of a snapshot that was begun before.
    let late = new_snapshot("i1", Some("mine"), "default");
    let late = NewSnapshot { template: first.template.clone(), ..late };
    assert_eq!(db.add_snapshot(&late, &team).await.unwrap_err().code, codes::CONFLICT);
    assert_eq!(db.known_builds().await.unwrap(), [kept.build]);

    let again = add(fixture, &team, &new_snapshot("i1", Some("mine"), "default")).await;
    assert_ne!(again.template, first.template);
    let found = db.resolve_template(&reference("mine"), &team).await.unwrap();
    assert_eq!(found.build.id, again.build);
}
