//! Templates, and how references lead to their builds.

use atoll_core::error::codes;
use atoll_state::{Database, database::Resolved, model::Team};
use futures::future::join_all;

use crate::fixture::{Fixture, new_build, reference};

async fn resolve(fixture: &impl Fixture, text: &str, team: &Team) -> Resolved {
    fixture.db().resolve_template(&reference(text), team).await.unwrap()
}

/// The status and message of a failed resolution.
async fn refusal(fixture: &impl Fixture, text: &str, team: &Team) -> (u16, String) {
    let error = fixture.db().resolve_template(&reference(text), team).await.unwrap_err();
    (error.code.status, error.message)
}

pub(crate) async fn a_published_build_is_found_by_its_alias(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let missing = refusal(fixture, "base", &team).await;
    assert_eq!(missing, (404, "template 'base' not found".to_owned()));
    let new = new_build("base");
    let template = fixture.db().publish_global_template(&new, team.id).await.unwrap();
    let other = fixture.other_team().await;
    for team in [&team, &other] {
        for text in ["base", "BASE", "base:default", template.as_str()] {
            let found = resolve(fixture, text, team).await;
            assert_eq!(found.template, template, "{text}");
            assert_eq!(found.alias.as_deref(), Some("base"));
            assert_eq!(found.build, new.build);
        }
    }
}

pub(crate) async fn publishing_is_idempotent(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let new = new_build("base");
    let first = fixture.db().publish_global_template(&new, team.id).await.unwrap();
    let before = fixture.db().templates(&team).await.unwrap();
    assert_eq!(fixture.db().publish_global_template(&new, team.id).await.unwrap(), first);
    assert_eq!(fixture.db().templates(&team).await.unwrap(), before);
    assert_eq!(before.len(), 1);
    assert_eq!((before[0].build_count, before[0].public), (1, true));
}

pub(crate) async fn the_last_published_build_counts(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let (old, new) = (new_build("base"), new_build("base"));
    let template = fixture.db().publish_global_template(&old, team.id).await.unwrap();
    assert_eq!(fixture.db().publish_global_template(&new, team.id).await.unwrap(), template);
    assert_eq!(resolve(fixture, "base", &team).await.build, new.build);
    let by_id = format!("base:{}", old.build.id);
    assert_eq!(resolve(fixture, &by_id, &team).await.build, old.build);
    // An Atoll that is rolled back publishes its own build again.
    fixture.db().publish_global_template(&old, team.id).await.unwrap();
    assert_eq!(resolve(fixture, "base", &team).await.build, old.build);
    let listed = fixture.db().templates(&team).await.unwrap();
    assert_eq!((listed.len(), listed[0].build_count, &listed[0].build), (1, 2, &old.build));
}

pub(crate) async fn only_plain_names_are_published(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    for bad in ["", "dev/base", "base:v1", "Base", " base", "a.b", "base:default"] {
        let refused = fixture.db().publish_global_template(&new_build(bad), team.id).await;
        assert_eq!(refused.unwrap_err().code, codes::INVALID_REQUEST, "{bad:?}");
    }
}

pub(crate) async fn concurrent_publishing_makes_one_template(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let builds: Vec<_> = (0..8).map(|_| new_build("base")).collect();
    let db = fixture.db();
    let templates = join_all(builds.iter().map(|new| db.publish_global_template(new, team.id)));
    let templates: Vec<_> = templates.await.into_iter().map(Result::unwrap).collect();
    assert!(templates.iter().all(|template| *template == templates[0]));
    assert_eq!(db.templates(&team).await.unwrap()[0].build_count, 8);
}

pub(crate) async fn a_bare_name_means_own_then_global_then_id(fixture: &impl Fixture) {
    let (team, other) = (fixture.seed().await, fixture.other_team().await);
    for (id, namespace) in [("own", "dev"), ("global", ""), ("foreign", "other")] {
        fixture.template(id, &team, namespace, "name", true).await;
        fixture.build(id, "default", "ready").await;
    }
    fixture.template("name", &team, "dev", "unrelated", true).await;
    fixture.build("name", "default", "ready").await;
    assert_eq!(resolve(fixture, "name", &team).await.template.as_str(), "own");
    assert_eq!(resolve(fixture, "name", &other).await.template.as_str(), "foreign");
    fixture.execute("DELETE FROM env_aliases WHERE namespace IN ('dev', 'other')").await;
    assert_eq!(resolve(fixture, "name", &team).await.template.as_str(), "global");
    fixture.execute("DELETE FROM env_aliases").await;
    let by_id = resolve(fixture, "name", &team).await;
    assert_eq!((by_id.template.as_str(), by_id.alias), ("name", None));
}

pub(crate) async fn an_explicit_namespace_is_exact(fixture: &impl Fixture) {
    let (team, other) = (fixture.seed().await, fixture.other_team().await);
    fixture.template("global", &team, "", "name", true).await;
    fixture.build("global", "default", "ready").await;
    for text in ["dev/name", "other/name", "dev/global"] {
        let missing = (404, format!("template '{text}' not found"));
        assert_eq!(refusal(fixture, text, &team).await, missing);
    }
    fixture.alias("global", "other", "name").await;
    for team in [&team, &other] {
        let found = resolve(fixture, "other/name", team).await;
        assert_eq!((found.template.as_str(), found.alias.as_deref()), ("global", Some("name")));
    }
}

pub(crate) async fn tags_and_builds_by_id(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    fixture.template("mine", &team, "dev", "name", false).await;
    let first = fixture.build("mine", "v1", "ready").await;
    let missing = refusal(fixture, "dev/name", &team).await;
    assert_eq!(missing, (404, "tag 'default' does not exist for template 'dev/name'".to_owned()));
    let second = fixture.build("mine", "v2", "ready").await;
    assert_eq!(resolve(fixture, "name:v1", &team).await.build.id, first);
    assert_eq!(resolve(fixture, "name:v2", &team).await.build.id, second);
    assert_eq!(resolve(fixture, &format!("mine:{first}"), &team).await.build.id, first);
    // The newest assignment of a tag wins.
    fixture.assign("mine", second, "v1").await;
    assert_eq!(resolve(fixture, "name:v1", &team).await.build.id, second);
    let missing = refusal(fixture, "name:v3", &team).await;
    assert_eq!(missing, (404, "tag 'v3' does not exist for template 'name'".to_owned()));
    // A build of another template is no tag of this one.
    fixture.template("another", &team, "dev", "another", false).await;
    let foreign = fixture.build("another", "default", "ready").await;
    assert_eq!(refusal(fixture, &format!("name:{foreign}"), &team).await.0, 404);
}

pub(crate) async fn builds_that_are_not_ready_do_not_count(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    fixture.template("mine", &team, "dev", "name", false).await;
    for group in ["pending", "in_progress", "failed"] {
        let build = fixture.build("mine", "default", group).await;
        let missing = refusal(fixture, "name", &team).await;
        assert_eq!(missing, (404, "tag 'default' does not exist for template 'name'".to_owned()));
        assert_eq!(refusal(fixture, &format!("name:{build}"), &team).await.0, 404);
        // It is listed all the same: for who waits for it, and who looks what became of it.
        let listed = fixture.db().templates(&team).await.unwrap();
        assert_eq!((listed.len(), listed[0].build.id), (1, build));
        fixture.execute("UPDATE env_builds SET created_at = 0").await;
    }
    let ready = fixture.build("mine", "default", "ready").await;
    fixture.build("mine", "default", "failed").await;
    assert_eq!(resolve(fixture, "name", &team).await.build.id, ready);
    assert_eq!(fixture.db().templates(&team).await.unwrap()[0].build.id, ready);
}

pub(crate) async fn deleted_templates_and_pause_snapshots_are_not_found(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    for id in ["gone", "paused", "snapshot"] {
        fixture.template(id, &team, "dev", id, false).await;
        fixture.build(id, "default", "ready").await;
    }
    fixture.execute("UPDATE envs SET deleted_at = 5 WHERE id = 'gone'").await;
    fixture.execute("UPDATE envs SET source = 'snapshot' WHERE id = 'paused'").await;
    fixture.execute("UPDATE envs SET source = 'snapshot_template' WHERE id = 'snapshot'").await;
    for name in ["gone", "paused", "dev/gone", "dev/paused"] {
        let missing = (404, format!("template '{name}' not found"));
        assert_eq!(refusal(fixture, name, &team).await, missing);
    }
    assert_eq!(resolve(fixture, "snapshot", &team).await.template.as_str(), "snapshot");
    assert!(fixture.db().templates(&team).await.unwrap().is_empty());
}

pub(crate) async fn private_templates_of_others_stay_hidden(fixture: &impl Fixture) {
    let (team, other) = (fixture.seed().await, fixture.other_team().await);
    fixture.template("theirs", &other, "other", "secret", false).await;
    fixture.build("theirs", "default", "ready").await;
    for name in ["other/secret", "theirs", "secret"] {
        let missing = (404, format!("template '{name}' not found"));
        assert_eq!(refusal(fixture, name, &team).await, missing);
    }
    assert!(fixture.db().templates(&team).await.unwrap().is_empty());
    assert_eq!(resolve(fixture, "secret", &other).await.template.as_str(), "theirs");
    // Everybody sees the global namespace, so that name's existence is no secret.
    fixture.alias("theirs", "", "shared").await;
    let refused = refusal(fixture, "shared", &team).await;
    assert_eq!(refused, (403, "you don't have access to template 'shared'".to_owned()));
    assert!(fixture.db().templates(&team).await.unwrap().is_empty());
    fixture.execute("UPDATE envs SET public = TRUE").await;
    for name in ["other/secret", "theirs", "shared"] {
        assert_eq!(resolve(fixture, name, &team).await.template.as_str(), "theirs");
    }
}

pub(crate) async fn the_list_has_own_and_global_templates(fixture: &impl Fixture) {
    let (team, other) = (fixture.seed().await, fixture.other_team().await);
    let base = fixture.db().publish_global_template(&new_build("base"), other.id).await.unwrap();
    fixture.template("own", &team, "dev", "mine", false).await;
    fixture.alias("own", "dev", "also").await;
    let build = fixture.build("own", "v1", "ready").await;
    fixture.template("public", &other, "other", "public", true).await;
    fixture.build("public", "default", "ready").await;

    let listed = fixture.db().templates(&team).await.unwrap();
    let ids: Vec<_> = listed.iter().map(|template| template.id.as_str()).collect();
    assert_eq!(ids, ["own", base.as_str()], "oldest first; public alone is not global");
    let own = &listed[0];
    assert_eq!((own.team, own.public), (team.id, false));
    assert_eq!(own.aliases, ["mine", "also"]);
    assert_eq!(own.names, ["dev/mine", "dev/also"]);
    assert_eq!(own.created_at.as_second(), 1);
    assert_eq!(own.updated_at.as_second(), 2);
    assert_eq!((own.build.id, own.build_count, own.spawn_count), (build, 1, 0));
    assert_eq!((own.last_spawned_at, own.build.memory_mb), (None, 512));
    assert_eq!((&listed[1].names, &listed[1].aliases), (&listed[1].aliases, &listed[1].names));
    assert_eq!(
        (listed[1].names.as_slice(), listed[1].team),
        (["base".to_owned()].as_slice(), other.id)
    );
}

pub(crate) async fn spawns_are_counted(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let db = fixture.db();
    let template = db.publish_global_template(&new_build("base"), team.id).await.unwrap();
    let counted = join_all((0..50).map(|_| db.count_spawn(&template))).await;
    assert!(counted.iter().all(Result::is_ok));
    let listed = db.templates(&team).await.unwrap().remove(0);
    assert_eq!(listed.spawn_count, 50);
    assert!(listed.last_spawned_at.unwrap() >= listed.created_at);
}
