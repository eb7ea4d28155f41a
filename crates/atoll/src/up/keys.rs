//! The keys that `atoll up` seeds.

use atoll_core::{Error, Result, error::codes, key};
use atoll_state::database::{DEVELOPMENT_ACCESS_TOKEN, DEVELOPMENT_API_KEY, Seed};
use serde::{Deserialize, Serialize};
use uuid::{Uuid, uuid};

use super::data_dir::DataDir;

/// The development user of E2B's documents.
const USER: Uuid = uuid!("fb69f46f-eb51-4a87-a14e-306f7a3fd89c");

const FILE: &str = "keys.json";

/// A deployment's keys.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Keys {
    pub(crate) api_key: String,
    pub(crate) access_token: String,
}

impl Keys {
    /// Fresh keys if this directory has some or `fresh` asks for them, else the published ones.
    ///
    /// # Errors
    /// `DATA_DIR_UNUSABLE` when the file of keys is damaged or cannot be written.
    pub(crate) fn load(directory: &DataDir, fresh: bool) -> Result<Self> {
        let path = directory.join(FILE);
        match std::fs::read(&path) {
            Ok(content) => serde_json::from_slice(&content).map_err(|error| {
                Error::new(
                    codes::DATA_DIR_UNUSABLE,
                    format!("{} is damaged: {error}.", path.display()),
                )
                .with_fix("Delete it and start with --fresh-keys to have new keys.")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if fresh {
                    Self::generate(directory)
                } else {
                    Ok(Self::development())
                }
            }
            Err(error) => Err(Error::new(
                codes::DATA_DIR_UNUSABLE,
                format!("cannot read {}: {error}.", path.display()),
            )),
        }
    }

    fn generate(directory: &DataDir) -> Result<Self> {
        let generate = |prefix| {
            key::generate(prefix)
                .map_err(|error| Error::new(codes::INTERNAL, format!("no randomness: {error}.")))
        };
        let keys = Self {
            api_key: generate(key::API_KEY_PREFIX)?,
            access_token: generate(key::ACCESS_TOKEN_PREFIX)?,
        };
        let content = serde_json::to_string_pretty(&keys)
            .map_err(|error| Error::new(codes::INTERNAL, format!("keys: {error}.")))?;
        directory.write(FILE, &content, 0o600)?;
        Ok(keys)
    }

    fn development() -> Self {
        Self {
            api_key: DEVELOPMENT_API_KEY.to_owned(),
            access_token: DEVELOPMENT_ACCESS_TOKEN.to_owned(),
        }
    }

    /// Whether these are the published keys.
    pub(crate) fn are_development(&self) -> bool {
        self.api_key == DEVELOPMENT_API_KEY
    }

    /// What the database is to be seeded with.
    pub(crate) fn seed(&self) -> Seed {
        Seed {
            api_key: self.api_key.clone(),
            access_token: self.access_token.clone(),
            development: self.are_development(),
            user: USER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_keys_stay() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = DataDir::open(temporary.path()).unwrap();
        assert!(Keys::load(&directory, false).unwrap().are_development());
        let fresh = Keys::load(&directory, true).unwrap();
        assert!(!fresh.are_development());
        let again = Keys::load(&directory, false).unwrap();
        assert_eq!(again.api_key, fresh.api_key);
        assert_eq!(again.access_token, fresh.access_token);
    }
}
