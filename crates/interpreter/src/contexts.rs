//! All contexts of the server, and which are the defaults of their languages.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    context::{Context, Description},
    home::Home,
    languages::{self, Language, Unknown},
};

/// Where default contexts work, and those that say nothing about it: the user's home, or the nearest
/// there is.
const DIRECTORIES: [&str; 3] = ["/home/user", "/root", "/"];

/// How many contexts there are at most, besides the defaults: whoever reaches the server can make
/// them, and each has a process.
const MAX_CONTEXTS: usize = 64;

/// All contexts.
#[derive(Debug)]
pub(crate) struct Contexts {
    home: Arc<Home>,
    /// For those that are no defaults.
    places: Arc<Semaphore>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// In the order in which they were made, and their places.
    contexts: Vec<(Arc<Context>, Option<OwnedSemaphorePermit>)>,
    /// Ids by language.
    defaults: HashMap<String, String>,
}

/// Why there is no such context.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("Context {0} not found")]
    NotFound(String),
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error("The working directory {} does not exist", .0.display())]
    NoDirectory(PathBuf),
    #[error("There are {MAX_CONTEXTS} contexts already: delete one first")]
    Full,
    #[error("The {language} kernel did not start: {why}")]
    Start { language: String, why: String },
}

impl Contexts {
    pub(crate) fn new(home: Arc<Home>) -> Self {
        let places = Arc::new(Semaphore::new(MAX_CONTEXTS));
        Self { home, places, known: Mutex::default() }
    }

    /// The context with this id.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Context>, Error> {
        self.known().get(id).ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// What clients are told about all of them.
    pub(crate) fn list(&self) -> Vec<Description> {
        self.known().contexts.iter().map(|(context, _)| context.description.clone()).collect()
    }

    /// The default context of a language, which is made if there is none.
    pub(crate) async fn default(&self, language: &str) -> Result<Arc<Context>, Error> {
        let name = languages::normalise(language);
        if let Some(context) = self.known().default(&name) {
            return Ok(context);
        }
        let language = languages::find(&name).await?;
        Ok(self.make_default(language).0)
    }

    /// Makes a default context, unless somebody else has. Its kernel's start is heard of only if it
    /// was made.
    pub(crate) fn make_default(
        &self,
        language: Language,
    ) -> (Arc<Context>, Option<oneshot::Receiver<Result<(), String>>>) {
        let mut known = self.known();
        if let Some(context) = known.default(&language.name) {
            return (context, None);
        }
        let name = language.name.clone();
        let (context, started) = Context::create(Arc::clone(&self.home), language, directory());
        known.defaults.insert(name, context.description.id.clone());
        known.contexts.push((Arc::clone(&context), None));
        (context, Some(started))
    }

    /// Makes another context of a language, and waits until its kernel is up.
    pub(crate) async fn create(
        &self,
        language: &str,
        cwd: Option<&Path>,
    ) -> Result<Description, Error> {
        let cwd = cwd.map_or_else(directory, |cwd| directory().join(cwd));
        if !cwd.is_dir() {
            return Err(Error::NoDirectory(cwd));
        }
        // First of all: to look for a language may take a process.
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Error::Full)?;
        let language = languages::find(&languages::normalise(language)).await?;
        let name = language.name.clone();
        let (context, started) = Context::create(Arc::clone(&self.home), language, cwd);
        // A client that does not wait leaves nothing behind: a context that nobody has ends. Until
        // then it has its place.
        let started = tokio::spawn(async { (started.await, place) });
        match started.await {
            Ok((Ok(Ok(())), place)) => {
                let description = context.description.clone();
                self.known().contexts.push((context, Some(place)));
                Ok(description)
            }
            Ok((Ok(Err(why)), _)) => Err(Error::Start { language: name, why }),
            Ok((Err(_), _)) | Err(_) => {
                Err(Error::Start { language: name, why: "it ended".to_owned() })
            }
        }
    }

    /// Deletes a context, and ends what runs in it.
    pub(crate) fn delete(&self, id: &str) -> Result<(), Error> {
        let context = self.get(id)?;
        let id = &context.description.id;
        let mut known = self.known();
        known.contexts.retain(|(context, _)| context.description.id != *id);
        known.defaults.retain(|_, default| default != id);
        context.delete();
        Ok(())
    }

    /// Every change is whole.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn get(&self, id: &str) -> Option<Arc<Context>> {
        let found = self.contexts.iter().find(|(context, _)| context.description.id == id);
        found.map(|(context, _)| Arc::clone(context))
    }

    fn default(&self, language: &str) -> Option<Arc<Context>> {
        self.get(self.defaults.get(language)?)
    }
}

/// Where contexts work that say nothing about it.
fn directory() -> PathBuf {
    let found = DIRECTORIES.iter().map(PathBuf::from).find(|directory| directory.is_dir());
    found.unwrap_or_else(|| "/".into())
}
