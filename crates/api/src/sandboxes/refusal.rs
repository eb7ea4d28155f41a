//! Why a node did not do what was asked of a sandbox, and how that is told to clients.
//!
//! The sentences are the contract's where it has one (control-plane contract, sections 5.1, 5.6 to
//! 5.11 and 8).

use atoll_core::{Error, Result, SandboxId, error::codes, lifecycle::State};

use crate::{control::Control, error::ApiError};

/// Why a node did not do what was asked.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There is no such sandbox.
    Gone,
    /// It is paused.
    Paused,
    /// It is being killed.
    Ending,
    /// It is in this state, between two others.
    Busy(State),
    /// It was tried, or there was no place.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Sorts a node's answer about the sandbox `id`.
pub(crate) async fn answered<T>(
    control: &Control,
    id: &SandboxId,
    answer: Result<Option<T>>,
) -> Result<T, Refusal> {
    match answer {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(Refusal::Gone),
        Err(error) if error.code == codes::SANDBOX_PAUSED => Err(Refusal::Paused),
        Err(error) if error.code == codes::SANDBOX_ENDING => Err(Refusal::Ending),
        Err(error) if error.code == codes::SANDBOX_BUSY => {
            // The only state that is short and that it comes back from is the one where a copy is
            // taken: that is what it was if it is over by now.
            let state = control.node.get(id).await?.map(|sandbox| sandbox.state);
            let between = state.filter(|state| !matches!(state, State::Running | State::Paused(_)));
            Err(Refusal::Busy(between.unwrap_or(State::Snapshotting)))
        }
        Err(error) => Err(Refusal::Failed(error)),
    }
}

/// The state as the contract's sentences name it.
fn word(state: State) -> &'static str {
    match state {
        State::Starting => "starting",
        State::Running => "running",
        State::Snapshotting => "snapshotting",
        State::Pausing(_) => "pausing",
        State::Paused(_) => "paused",
        State::Resuming(_) => "resuming",
        State::Ending => "killing",
    }
}

impl Refusal {
    /// What a client is told who asked for something that needs no sentence of its own.
    pub(crate) fn told(self, id: &SandboxId) -> ApiError {
        match self {
            Self::Gone => ApiError::sandbox_not_found(id),
            Self::Paused => {
                ApiError::new(codes::SANDBOX_PAUSED, format!("Sandbox \"{id}\" is paused."))
            }
            Self::Ending => ApiError::being_killed(id),
            Self::Busy(State::Snapshotting) => being_snapshotted(id),
            Self::Busy(state) => {
                let doing = match state {
                    State::Pausing(_) => "paused",
                    State::Resuming(_) => "resumed",
                    _ => "started",
                };
                let message = format!("Sandbox \"{id}\" is being {doing}");
                ApiError::fixed(codes::SANDBOX_BUSY, message)
            }
            Self::Failed(error) => error.into(),
        }
    }

    /// The same, to who asked that it be `done` (a participle) to the sandbox.
    pub(crate) fn told_of(self, done: &str, id: &SandboxId) -> ApiError {
        let (code, state) = match self {
            Self::Ending => (codes::SANDBOX_ENDING, State::Ending),
            Self::Busy(state) => (codes::SANDBOX_BUSY, state),
            other => return other.told(id),
        };
        let state = word(state);
        let message = format!("Sandbox '{id}' cannot be {done} while in '{state}' state");
        ApiError::fixed(code, message)
    }

    /// The same for another part of this process.
    pub(crate) fn into_error(self, id: &SandboxId) -> Error {
        match self {
            Self::Gone | Self::Ending => {
                Error::new(codes::NOT_FOUND, format!("there is no sandbox {id}."))
            }
            other => other.told(id).into_error(),
        }
    }
}

/// What a client is told who comes while a copy is taken.
pub(crate) fn being_snapshotted(id: &SandboxId) -> ApiError {
    ApiError::fixed(
        codes::SANDBOX_BUSY,
        format!("Sandbox snapshot is currently being created for sandbox '{id}'"),
    )
}
