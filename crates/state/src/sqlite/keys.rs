//! Tiers, teams, users, API keys and access tokens.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use atoll_core::{
    Error, Result,
    error::codes,
    key::{self, ACCESS_TOKEN_PREFIX, API_KEY_PREFIX, KeyError, Mask},
    limits::{DEVELOPMENT_TIER, Tier},
};
use sqlx::{Sqlite, SqliteExecutor, SqlitePool, Transaction, sqlite::SqliteRow};
use uuid::Uuid;

use super::{SqliteDatabase, columns::Columns, error::Context, now};
use crate::{
    database::{DEVELOPMENT_ACCESS_TOKEN, DEVELOPMENT_API_KEY, DEVELOPMENT_TEAM, Seed},
    model::{KeyOwner, Team, TokenOwner},
};

const TIER: &str = "development";
const TEAM_NAME: &str = "Development";
const TEAM_SLUG: &str = "dev";

/// How long an answer about a key is reused. A change made in the database by hand (a limit, a ban)
/// is in force after this time.
const CACHE_TTL: Duration = Duration::from_secs(5);
/// Most keys in the cache.
const CACHE_SIZE: usize = 4096;
/// How often the use of a key is recorded, microseconds.
const LAST_USED_STEP: i64 = 60_000_000;

/// Owners of the keys in use: every request asks.
#[derive(Clone, Default)]
pub(super) struct KeyCache(Arc<Mutex<HashMap<String, (Instant, KeyOwner)>>>);

impl KeyCache {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Instant, KeyOwner)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, hash: &str) -> Option<KeyOwner> {
        let cache = self.lock();
        let (since, owner) = cache.get(hash)?;
        (since.elapsed() < CACHE_TTL).then(|| owner.clone())
    }

    fn put(&self, hash: &str, owner: &KeyOwner) {
        let mut cache = self.lock();
        if cache.len() >= CACHE_SIZE {
            cache.retain(|_, (since, _)| since.elapsed() < CACHE_TTL);
        }
        if cache.len() < CACHE_SIZE {
            cache.insert(hash.to_owned(), (Instant::now(), owner.clone()));
        }
    }
}

/// The columns of [`read_team`], of `teams t` and `tiers l`.
macro_rules! team_columns {
    () => {
        "t.id AS team_id, t.name AS team_name, t.slug, t.is_banned, t.is_blocked, \
         t.blocked_reason, l.id AS tier_id, l.concurrent_instances, l.max_length_hours, \
         l.max_vcpu, l.max_ram_mb, l.disk_mb, l.concurrent_template_builds"
    };
}

fn read_team(row: &SqliteRow) -> Result<Team> {
    let reason: Option<String> = row.value("blocked_reason")?;
    Ok(Team {
        id: row.id("team_id")?,
        name: row.value("team_name")?,
        slug: row.value("slug")?,
        tier_name: row.value("tier_id")?,
        tier: Tier {
            concurrent_sandboxes: row.number("concurrent_instances")?,
            max_length_hours: row.number("max_length_hours")?,
            max_vcpu: row.number("max_vcpu")?,
            max_ram_mb: row.number("max_ram_mb")?,
            disk_mb: row.number("disk_mb")?,
            concurrent_builds: row.number("concurrent_template_builds")?,
        },
        banned: row.value("is_banned")?,
        blocked: row.value::<bool>("is_blocked")?.then(|| reason.unwrap_or_default()),
    })
}

pub(super) async fn team(executor: impl SqliteExecutor<'_>, id: Uuid) -> Result<Option<Team>> {
    sqlx::query(concat!(
        "SELECT ",
        team_columns!(),
        " FROM teams t JOIN tiers l ON l.id = t.tier WHERE t.id = $1"
    ))
    .bind(id.to_string())
    .fetch_optional(executor)
    .await
    .coded()?
    .as_ref()
    .map(read_team)
    .transpose()
}

pub(super) async fn key_owner(db: &SqliteDatabase, hash: &str) -> Result<Option<KeyOwner>> {
    if let Some(owner) = db.key_cache.get(hash) {
        return Ok(Some(owner));
    }
    let row = sqlx::query(concat!(
        "SELECT k.id AS key_id, k.is_development, k.last_used, ",
        team_columns!(),
        " FROM team_api_keys k JOIN teams t ON t.id = k.team_id JOIN tiers l ON l.id = t.tier \
         WHERE k.api_key_hash = $1"
    ))
    .bind(hash)
    .fetch_optional(&db.pool)
    .await
    .coded()?;
    let Some(row) = row else { return Ok(None) };
    let owner = KeyOwner {
        team: read_team(&row)?,
        key_id: row.id("key_id")?,
        development: row.value("is_development")?,
    };
    let used: Option<i64> = row.value("last_used")?;
    if used.is_none_or(|used| used.abs_diff(now()) >= LAST_USED_STEP.unsigned_abs()) {
        // Beside the request: it neither waits for the write lock nor fails if the disk is full.
        tokio::spawn(record_use(db.writer.clone(), owner.key_id));
    }
    db.key_cache.put(hash, &owner);
    Ok(Some(owner))
}

async fn record_use(writer: SqlitePool, key: Uuid) {
    let result = sqlx::query("UPDATE team_api_keys SET last_used = $1 WHERE id = $2")
        .bind(now())
        .bind(key.to_string())
        .execute(&writer)
        .await;
    match result {
        Ok(_) | Err(sqlx::Error::PoolClosed) => {}
        Err(error) => tracing::warn!(%key, %error, "the use of an API key was not recorded"),
    }
}

pub(super) async fn token_owner(db: &SqliteDatabase, hash: &str) -> Result<Option<TokenOwner>> {
    let token = sqlx::query(
        "SELECT user_id, is_development FROM access_tokens WHERE access_token_hash = $1",
    )
    .bind(hash)
    .fetch_optional(&db.pool)
    .await
    .coded()?;
    let Some(token) = token else { return Ok(None) };
    let user: Uuid = token.id("user_id")?;
    let teams = sqlx::query(concat!(
        "SELECT ",
        team_columns!(),
        " FROM users_teams m JOIN teams t ON t.id = m.team_id JOIN tiers l ON l.id = t.tier \
         WHERE m.user_id = $1 ORDER BY m.is_default DESC, t.created_at, t.id"
    ))
    .bind(user.to_string())
    .fetch_all(&db.pool)
    .await
    .coded()?;
    Ok(Some(TokenOwner {
        user,
        teams: teams.iter().map(read_team).collect::<Result<_>>()?,
        development: token.value("is_development")?,
    }))
}

/// A key as it is stored.
struct StoredKey {
    hash: String,
    mask: Mask,
}

impl StoredKey {
    fn of(prefix: &str, raw: &str) -> Result<Self, KeyError> {
        Ok(Self { hash: key::hash(prefix, raw)?, mask: Mask::of(prefix, raw)? })
    }

    fn of_seed(what: &str, prefix: &str, raw: &str) -> Result<Self> {
        Self::of(prefix, raw).map_err(|error| {
            Error::new(codes::BAD_OPTION, format!("the {what} is unusable: {error}."))
                .with_fix(format!("Give one of the form {prefix} and 40 hexadecimal characters."))
        })
    }

    fn length(&self) -> i64 {
        i64::try_from(self.mask.value_length).unwrap_or(i64::MAX)
    }
}

pub(super) async fn seed(db: &SqliteDatabase, seed: &Seed) -> Result<Team> {
    let key = StoredKey::of_seed("API key", API_KEY_PREFIX, &seed.api_key)?;
    let token = StoredKey::of_seed("access token", ACCESS_TOKEN_PREFIX, &seed.access_token)?;
    // By hash: a published key in other letters is the same key.
    let published = key::hash(API_KEY_PREFIX, DEVELOPMENT_API_KEY).is_ok_and(|it| it == key.hash)
        || key::hash(ACCESS_TOKEN_PREFIX, DEVELOPMENT_ACCESS_TOKEN)
            .is_ok_and(|it| it == token.hash);
    if published && !seed.development {
        return Err(Error::new(
            codes::BAD_OPTION,
            "the published development keys cannot serve as secret ones.",
        )
        .with_fix("Start with --fresh-keys, or give keys of your own."));
    }

    let mut tx = db.begin_write().await?;
    seed_team(&mut tx, seed.user).await?;
    if !seed.development {
        retire_development_keys(&mut tx).await?;
    }
    let name = if seed.development { "Development key" } else { "First key" };
    let first = NewApiKey {
        team: DEVELOPMENT_TEAM,
        user: seed.user,
        name,
        development: seed.development,
        key: &key,
    };
    insert_api_key(&mut *tx, first).await?;
    seed_access_token(&mut tx, seed, name, &token).await?;
    let team = team(&mut *tx, DEVELOPMENT_TEAM).await?.ok_or_else(|| {
        Error::new(codes::INTERNAL, "the development team could not be read back.")
    })?;
    tx.commit().await.coded()?;
    Ok(team)
}

/// A deployment with keys of its own must not go on taking the published ones.
async fn retire_development_keys(tx: &mut Transaction<'static, Sqlite>) -> Result<()> {
    for statement in [
        "DELETE FROM team_api_keys WHERE is_development",
        "DELETE FROM access_tokens WHERE is_development",
    ] {
        sqlx::query(statement).execute(&mut **tx).await.coded()?;
    }
    Ok(())
}

/// Tier, user, team and membership. What is there stays as an operator may have changed it.
async fn seed_team(tx: &mut Transaction<'static, Sqlite>, user: Uuid) -> Result<()> {
    let tier = DEVELOPMENT_TIER;
    sqlx::query(
        "INSERT INTO tiers (id, name, concurrent_instances, max_length_hours, max_vcpu, \
         max_ram_mb, disk_mb, concurrent_template_builds) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
    )
    .bind(TIER)
    .bind("Development")
    .bind(i64::from(tier.concurrent_sandboxes))
    .bind(i64::from(tier.max_length_hours))
    .bind(i64::from(tier.max_vcpu))
    .bind(i64::from(tier.max_ram_mb))
    .bind(i64::from(tier.disk_mb))
    .bind(i64::from(tier.concurrent_builds))
    .execute(&mut **tx)
    .await
    .coded()?;
    sqlx::query(
        "INSERT INTO teams (id, name, slug, tier, created_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(DEVELOPMENT_TEAM.to_string())
    .bind(TEAM_NAME)
    .bind(TEAM_SLUG)
    .bind(TIER)
    .bind(now())
    .execute(&mut **tx)
    .await
    .coded()?;
    sqlx::query("INSERT INTO users (id, created_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
        .bind(user.to_string())
        .bind(now())
        .execute(&mut **tx)
        .await
        .coded()?;
    sqlx::query(
        "INSERT INTO users_teams (user_id, team_id, is_default, created_at) \
         VALUES ($1, $2, $3, $4) ON CONFLICT (user_id, team_id) DO NOTHING",
    )
    .bind(user.to_string())
    .bind(DEVELOPMENT_TEAM.to_string())
    .bind(true)
    .bind(now())
    .execute(&mut **tx)
    .await
    .coded()?;
    Ok(())
}

pub(super) async fn create_api_key(
    db: &SqliteDatabase,
    team: Uuid,
    user: Uuid,
    name: &str,
    raw: &str,
) -> Result<()> {
    let key = StoredKey::of_seed("API key", API_KEY_PREFIX, raw)?;
    let new = NewApiKey { team, user, name, development: false, key: &key };
    insert_api_key(&db.writer, new).await
}

/// An API key to be stored.
struct NewApiKey<'a> {
    team: Uuid,
    user: Uuid,
    name: &'a str,
    development: bool,
    key: &'a StoredKey,
}

async fn insert_api_key(executor: impl SqliteExecutor<'_>, new: NewApiKey<'_>) -> Result<()> {
    let NewApiKey { team, user, name, development, key } = new;
    sqlx::query(
        "INSERT INTO team_api_keys (id, team_id, api_key_hash, prefix, length, mask_prefix, \
         mask_suffix, name, is_development, created_by, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11) \
         ON CONFLICT (api_key_hash) DO NOTHING",
    )
    .bind(Uuid::now_v7().to_string())
    .bind(team.to_string())
    .bind(&key.hash)
    .bind(&key.mask.prefix)
    .bind(key.length())
    .bind(&key.mask.masked_value_prefix)
    .bind(&key.mask.masked_value_suffix)
    .bind(name)
    .bind(development)
    .bind(user.to_string())
    .bind(now())
    .execute(executor)
    .await
    .coded()?;
    Ok(())
}

async fn seed_access_token(
    tx: &mut Transaction<'static, Sqlite>,
    seed: &Seed,
    name: &str,
    token: &StoredKey,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO access_tokens (id, user_id, access_token_hash, prefix, length, mask_prefix, \
         mask_suffix, name, is_development, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
         ON CONFLICT (access_token_hash) DO NOTHING",
    )
    .bind(Uuid::now_v7().to_string())
    .bind(seed.user.to_string())
    .bind(&token.hash)
    .bind(&token.mask.prefix)
    .bind(token.length())
    .bind(&token.mask.masked_value_prefix)
    .bind(&token.mask.masked_value_suffix)
    .bind(name)
    .bind(seed.development)
    .bind(now())
    .execute(&mut **tx)
    .await
    .coded()?;
    Ok(())
}
