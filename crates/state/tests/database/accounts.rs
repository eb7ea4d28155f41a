//! Tiers, teams, keys and tokens.

use atoll_core::{
    error::codes,
    key::{self, ACCESS_TOKEN_PREFIX, API_KEY_PREFIX},
    limits::DEVELOPMENT_TIER,
};
use atoll_state::{
    Database,
    database::{DEVELOPMENT_ACCESS_TOKEN, DEVELOPMENT_API_KEY, DEVELOPMENT_TEAM, Seed},
    model::{KeyOwner, TokenOwner},
};

use crate::fixture::{Fixture, OTHER_TEAM, USER, development, eventually};

async fn key_owner(db: &impl Database, raw: &str) -> Option<KeyOwner> {
    db.key_owner(&key::hash(API_KEY_PREFIX, raw).unwrap()).await.unwrap()
}

async fn token_owner(db: &impl Database, raw: &str) -> Option<TokenOwner> {
    db.token_owner(&key::hash(ACCESS_TOKEN_PREFIX, raw).unwrap()).await.unwrap()
}

fn fresh() -> Seed {
    Seed {
        api_key: key::generate(API_KEY_PREFIX).unwrap(),
        access_token: key::generate(ACCESS_TOKEN_PREFIX).unwrap(),
        development: false,
        user: USER,
    }
}

pub(crate) async fn the_seed_makes_a_team_that_its_keys_lead_to(fixture: &impl Fixture) {
    let db = fixture.db();
    let team = fixture.seed().await;
    assert_eq!((team.id, team.slug.as_str()), (DEVELOPMENT_TEAM, "dev"));
    assert_eq!((team.tier_name.as_str(), team.tier), ("development", DEVELOPMENT_TIER));
    assert_eq!((team.banned, &team.blocked), (false, &None));

    let owner = key_owner(db, DEVELOPMENT_API_KEY).await.unwrap();
    assert!(owner.development);
    assert_eq!(owner.team, team);
    assert_eq!(key_owner(db, DEVELOPMENT_API_KEY).await.unwrap(), owner, "asked twice");

    let owner = token_owner(db, DEVELOPMENT_ACCESS_TOKEN).await.unwrap();
    assert_eq!((owner.user, owner.development), (USER, true));
    assert_eq!(owner.teams.as_slice(), std::slice::from_ref(&team));
    assert_eq!(db.team(team.id).await.unwrap(), Some(team));
}

pub(crate) async fn seeding_again_changes_nothing(fixture: &impl Fixture) {
    let team = fixture.seed().await;
    let owner = key_owner(fixture.db(), DEVELOPMENT_API_KEY).await;
    assert_eq!(fixture.seed().await, team);
    assert_eq!(key_owner(fixture.db(), DEVELOPMENT_API_KEY).await, owner);
    assert_eq!(fixture.number("SELECT COUNT(*) FROM team_api_keys").await, Some(1));
    assert_eq!(fixture.number("SELECT COUNT(*) FROM access_tokens").await, Some(1));
    assert_eq!(fixture.number("SELECT COUNT(*) FROM users_teams").await, Some(1));
}

pub(crate) async fn a_seed_with_other_keys_adds_them(fixture: &impl Fixture) {
    let db = fixture.db();
    let secret = fresh();
    let team = db.seed(&secret).await.unwrap();
    assert_eq!(key_owner(db, DEVELOPMENT_API_KEY).await, None, "the published key came along");
    assert_eq!(token_owner(db, DEVELOPMENT_ACCESS_TOKEN).await, None);
    assert_eq!(db.seed(&development()).await.unwrap(), team);

    let owner = key_owner(db, &secret.api_key).await.unwrap();
    assert_eq!((&owner.team, owner.development), (&team, false));
    assert!(!token_owner(db, &secret.access_token).await.unwrap().development);
    assert!(key_owner(db, DEVELOPMENT_API_KEY).await.unwrap().development);
    assert!(token_owner(db, DEVELOPMENT_ACCESS_TOKEN).await.unwrap().development);
}

pub(crate) async fn fresh_keys_retire_the_published_ones(fixture: &impl Fixture) {
    let db = fixture.db();
    fixture.seed().await;
    let secret = fresh();
    db.seed(&secret).await.unwrap();
    assert!(key_owner(db, &secret.api_key).await.is_some());
    assert_eq!(token_owner(db, DEVELOPMENT_ACCESS_TOKEN).await, None);
    assert_eq!(key_owner(db, DEVELOPMENT_API_KEY).await, None);
}

pub(crate) async fn published_keys_do_not_pass_for_secret_ones(fixture: &impl Fixture) {
    let db = fixture.db();
    let key = Seed { api_key: DEVELOPMENT_API_KEY.to_owned(), ..fresh() };
    let upper = Seed { api_key: "e2b_53AE1FED82754C17AD8077FBC8BCDD90".to_owned(), ..fresh() };
    let token = Seed { access_token: DEVELOPMENT_ACCESS_TOKEN.to_owned(), ..fresh() };
    for seed in [key, upper, token] {
        assert_eq!(db.seed(&seed).await.unwrap_err().code, codes::BAD_OPTION);
    }
    assert_eq!(key_owner(db, DEVELOPMENT_API_KEY).await, None);
    assert_eq!(token_owner(db, DEVELOPMENT_ACCESS_TOKEN).await, None);
}

pub(crate) async fn malformed_keys_are_refused(fixture: &impl Fixture) {
    for bad in ["", "e2b_", "e2b_xyz", "e2b_abc", "sk_e2b_00112233", "e2b_0011"] {
        let seed = Seed { api_key: bad.to_owned(), ..fresh() };
        let error = fixture.db().seed(&seed).await.unwrap_err();
        assert_eq!(error.code, codes::BAD_OPTION, "{bad:?}");
    }
    assert_eq!(fixture.number("SELECT COUNT(*) FROM teams").await, Some(0));
}

pub(crate) async fn unknown_keys_lead_nowhere(fixture: &impl Fixture) {
    fixture.seed().await;
    let unknown = fresh();
    assert_eq!(key_owner(fixture.db(), &unknown.api_key).await, None);
    assert_eq!(token_owner(fixture.db(), &unknown.access_token).await, None);
    assert_eq!(fixture.db().team(OTHER_TEAM).await.unwrap(), None);
    // A key that is unknown now is known as soon as it is there.
    fixture.db().seed(&unknown).await.unwrap();
    assert!(key_owner(fixture.db(), &unknown.api_key).await.is_some());
}

pub(crate) async fn what_an_operator_changed_survives_the_seed(fixture: &impl Fixture) {
    fixture.seed().await;
    fixture.execute("UPDATE tiers SET concurrent_instances = 7, max_ram_mb = 1024").await;
    fixture.execute("UPDATE teams SET name = 'Ours', slug = 'ours'").await;
    let team = fixture.seed().await;
    assert_eq!((team.tier.concurrent_sandboxes, team.tier.max_ram_mb), (7, 1024));
    assert_eq!((team.name.as_str(), team.slug.as_str()), ("Ours", "ours"));
}

pub(crate) async fn banned_and_blocked_teams_are_marked(fixture: &impl Fixture) {
    fixture.seed().await;
    fixture.execute("UPDATE teams SET is_banned = TRUE, blocked_reason = 'unused'").await;
    let team = key_owner(fixture.db(), DEVELOPMENT_API_KEY).await.unwrap().team;
    assert_eq!((team.banned, team.blocked), (true, None));
    fixture.execute("UPDATE teams SET is_blocked = TRUE, blocked_reason = 'unpaid'").await;
    let blocked = fixture.db().team(team.id).await.unwrap().unwrap().blocked;
    assert_eq!(blocked.as_deref(), Some("unpaid"));
    fixture.execute("UPDATE teams SET blocked_reason = NULL").await;
    let blocked = fixture.db().team(team.id).await.unwrap().unwrap().blocked;
    assert_eq!(blocked.as_deref(), Some(""));
}

pub(crate) async fn the_default_team_of_a_user_comes_first(fixture: &impl Fixture) {
    let own = fixture.seed().await;
    let other = fixture.other_team().await;
    fixture
        .execute(&format!(
            "INSERT INTO users_teams (user_id, team_id, is_default, created_at) \
             VALUES ('{USER}', '{OTHER_TEAM}', FALSE, 1)"
        ))
        .await;
    let owner = token_owner(fixture.db(), DEVELOPMENT_ACCESS_TOKEN).await.unwrap();
    assert_eq!(owner.teams, [own.clone(), other.clone()]);
    fixture
        .execute(&format!("UPDATE users_teams SET is_default = (team_id = '{OTHER_TEAM}')"))
        .await;
    let owner = token_owner(fixture.db(), DEVELOPMENT_ACCESS_TOKEN).await.unwrap();
    assert_eq!(owner.teams, [other, own]);
}

pub(crate) async fn the_use_of_a_key_is_recorded(fixture: &impl Fixture) {
    const LAST_USED: &str = "SELECT last_used FROM team_api_keys";
    fixture.seed().await;
    assert_eq!(fixture.number(LAST_USED).await, None);
    assert!(key_owner(fixture.db(), DEVELOPMENT_API_KEY).await.is_some());
    eventually(async || fixture.number(LAST_USED).await.is_some()).await;
}
