//! What every handler of envd shares: the access token, the defaults and the variables that
//! `POST /init` sets, and what the node said at boot.
//!
//! All of it sits behind one lock that is held for a few instructions, never over an await.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use atoll_wire::guest::{BootConfig, GuestLimits, InitRequest};
use subtle::ConstantTimeEq;

/// User for requests that name none, until `/init` chooses another.
const FALLBACK_USER: &str = "root";

/// State shared by all handlers.
pub struct Guest {
    settings: Mutex<Settings>,
    /// Set between `/freeze` and `/unfreeze` or `/init`.
    frozen: AtomicBool,
}

/// What `/init` may change.
#[derive(Clone, Default)]
struct Settings {
    /// Who the sandbox is and what it may use: as at boot, until it comes from a checkpoint.
    boot: BootConfig,
    access_token: Option<String>,
    default_user: Option<String>,
    default_workdir: Option<String>,
    user_vars: BTreeMap<String, String>,
    /// Seconds and nanoseconds since the epoch of the newest `/init` applied.
    initialized_at: Option<(i64, i32)>,
}

impl Guest {
    /// The state of a sandbox that no `/init` has reached yet.
    pub fn new(boot: BootConfig) -> Arc<Self> {
        let settings = Settings { boot, ..Settings::default() };
        Arc::new(Self { settings: Mutex::new(settings), frozen: AtomicBool::new(false) })
    }

    /// The token that clients must send, if one is set.
    pub fn access_token(&self) -> Option<String> {
        self.settings().access_token.clone()
    }

    /// Whether `offered` is good enough for routes that need the access token: always, while none
    /// is set. The comparison takes the same time wherever the strings differ.
    pub fn accepts_token(&self, offered: Option<&[u8]>) -> bool {
        match &self.settings().access_token {
            None => true,
            Some(token) => offered.is_some_and(|offered| same(token.as_bytes(), offered)),
        }
    }

    /// Whether the node gave this sandbox a control secret.
    pub fn has_control_secret(&self) -> bool {
        !self.settings().boot.control_secret.is_empty()
    }

    /// Whether `offered` opens the control routes: always, without a control secret.
    pub fn accepts_control(&self, offered: Option<&[u8]>) -> bool {
        let settings = self.settings();
        let secret = &settings.boot.control_secret;
        secret.is_empty() || offered.is_some_and(|offered| same(secret.as_bytes(), offered))
    }

    /// What the sandbox may use, where that is less than the machine it sees.
    pub fn limits(&self) -> Option<GuestLimits> {
        self.settings().boot.limits
    }

    /// Who the sandbox is: its id and that of its template, empty where nobody has said so.
    pub fn identity(&self) -> (String, String) {
        let settings = self.settings();
        (settings.boot.sandbox_id.clone(), settings.boot.template_id.clone())
    }

    /// Name of the user for requests that name none.
    pub fn default_user(&self) -> String {
        self.settings().default_user.clone().unwrap_or_else(|| FALLBACK_USER.to_owned())
    }

    /// Working directory for commands and paths that name none; without one, the home directory.
    pub fn default_workdir(&self) -> Option<String> {
        self.settings().default_workdir.clone()
    }

    /// The variables every command gets: the user's, then those that describe the sandbox
    /// (`E2B_SANDBOX`, `E2B_SANDBOX_ID`, `E2B_TEMPLATE_ID`), which users cannot override.
    pub fn env_vars(&self) -> BTreeMap<String, String> {
        let settings = self.settings();
        let mut vars = settings.user_vars.clone();
        vars.insert("E2B_SANDBOX".to_owned(), "true".to_owned());
        let BootConfig { sandbox_id, template_id, .. } = &settings.boot;
        for (name, value) in [("E2B_SANDBOX_ID", sandbox_id), ("E2B_TEMPLATE_ID", template_id)] {
            if !value.is_empty() {
                vars.insert(name.to_owned(), value.clone());
            }
        }
        vars
    }

    /// Whether `request` is older than, or the same as, one already applied. One that brings another
    /// control secret is not: nobody but the node can have that secret, and its clock may have been
    /// set back since the checkpoint.
    pub fn is_stale(&self, request: &InitRequest, timestamp: (i64, i32)) -> bool {
        let settings = self.settings();
        let rotates = request.control_secret.as_ref().is_some_and(|new| {
            !new.is_empty() && !same(new.as_bytes(), settings.boot.control_secret.as_bytes())
        });
        !rotates && settings.initialized_at.is_some_and(|applied| timestamp <= applied)
    }

    /// Applies the settings of an authorised `/init`, all at once.
    ///
    /// Absent variables stay as they are, an absent token clears the token, and empty defaults, ids
    /// and secrets are ignored.
    pub fn apply(&self, request: InitRequest, timestamp: Option<(i64, i32)>) {
        let mut settings = self.settings();
        let boot = &mut settings.boot;
        for (old, new) in [
            (&mut boot.sandbox_id, request.sandbox_id),
            (&mut boot.template_id, request.template_id),
            (&mut boot.control_secret, request.control_secret),
        ] {
            if let Some(new) = new.filter(|new| !new.is_empty()) {
                *old = new;
            }
        }
        boot.limits = request.limits.or(boot.limits);
        settings.access_token = request.access_token.filter(|token| !token.is_empty());
        if let Some(vars) = request.env_vars {
            settings.user_vars = vars;
        }
        if let Some(user) = request.default_user.filter(|user| !user.is_empty()) {
            settings.default_user = Some(user);
        }
        if let Some(workdir) = request.default_workdir.filter(|workdir| !workdir.is_empty()) {
            settings.default_workdir = Some(workdir);
        }
        if timestamp.is_some() {
            settings.initialized_at = timestamp;
        }
    }

    /// Whether nothing new is to be started, because the node holds still what runs.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    /// Notes that the node holds the sandbox's processes still, or lets them go on.
    pub fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// No holder of the lock can panic halfway through a change, so a poisoned one is still good.
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn same(secret: &[u8], offered: &[u8]) -> bool {
    secret.ct_eq(offered).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot() -> BootConfig {
        BootConfig {
            control_secret: "control".into(),
            sandbox_id: "isbx".into(),
            template_id: "base".into(),
            limits: None,
        }
    }

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    // Rules: INIT-9
    #[test]
    fn users_cannot_change_what_describes_the_sandbox() {
        let guest = Guest::new(boot());
        let env_vars = Some(vars(&[("E2B_SANDBOX_ID", "forged"), ("A", "1")]));
        guest.apply(InitRequest { env_vars, ..InitRequest::default() }, None);
        let seen = guest.env_vars();
        assert_eq!(seen["E2B_SANDBOX_ID"], "isbx");
        assert_eq!(seen["A"], "1");
    }

    // Rules: INIT-8
    #[test]
    fn variables_are_replaced_only_when_given() {
        let guest = Guest::new(BootConfig::default());
        let with = |env_vars| InitRequest { env_vars, ..InitRequest::default() };
        guest.apply(with(Some(vars(&[("A", "1")]))), None);
        guest.apply(with(None), None);
        assert_eq!(guest.env_vars().get("A").map(String::as_str), Some("1"));
        guest.apply(with(Some(vars(&[("B", "2")]))), None);
        assert_eq!(guest.env_vars().get("A"), None);
        guest.apply(with(Some(BTreeMap::new())), None);
        assert_eq!(guest.env_vars(), vars(&[("E2B_SANDBOX", "true")]));
    }

    #[test]
    fn a_token_is_needed_once_one_is_set() {
        let guest = Guest::new(boot());
        assert!(guest.accepts_token(None));
        let access_token = Some("tok".to_owned());
        guest.apply(InitRequest { access_token, ..InitRequest::default() }, None);
        assert!(!guest.accepts_token(None));
        assert!(!guest.accepts_token(Some(b"tok2")));
        assert!(guest.accepts_token(Some(b"tok")));
        guest.apply(InitRequest::default(), None);
        assert!(guest.accepts_token(None));
    }

    #[test]
    fn control_routes_are_open_only_without_a_secret() {
        assert!(Guest::new(BootConfig::default()).accepts_control(None));
        let guest = Guest::new(boot());
        assert!(!guest.accepts_control(None));
        assert!(!guest.accepts_control(Some(b"")));
        assert!(guest.accepts_control(Some(b"control")));
    }

    #[test]
    fn a_new_control_secret_voids_the_old_one_whatever_the_clock_says() {
        let guest = Guest::new(boot());
        guest.apply(InitRequest::default(), Some((100, 0)));
        let rotation = |secret: &str| InitRequest {
            control_secret: Some(secret.to_owned()),
            ..InitRequest::default()
        };
        // The present secret, or none, does not make an old request news.
        for secret in ["control", ""] {
            assert!(guest.is_stale(&rotation(secret), (99, 0)), "{secret}");
        }
        assert!(!guest.is_stale(&rotation("new"), (99, 0)));
        guest.apply(rotation("new"), Some((99, 0)));
        assert!(guest.accepts_control(Some(b"new")) && !guest.accepts_control(Some(b"control")));
        guest.apply(rotation(""), Some((101, 0)));
        assert!(guest.accepts_control(Some(b"new")) && !guest.accepts_control(None));
    }

    #[test]
    fn a_fork_is_told_who_it_is_and_what_it_may_use() {
        let guest = Guest::new(boot());
        let limits = Some(GuestLimits { vcpu: 2, memory: 1 << 30 });
        let request = InitRequest {
            sandbox_id: Some("ifork".into()),
            template_id: Some("other".into()),
            limits,
            ..InitRequest::default()
        };
        guest.apply(request, None);
        guest.apply(InitRequest::default(), None);
        let seen = guest.env_vars();
        assert_eq!((&*seen["E2B_SANDBOX_ID"], &*seen["E2B_TEMPLATE_ID"]), ("ifork", "other"));
        assert_eq!(guest.limits(), limits);
    }

    // Rules: INIT-11
    #[test]
    fn empty_defaults_are_ignored() {
        let guest = Guest::new(boot());
        assert_eq!(guest.default_user(), "root");
        let request = InitRequest {
            default_user: Some("user".into()),
            default_workdir: Some("/code".into()),
            ..InitRequest::default()
        };
        guest.apply(request, None);
        let request = InitRequest {
            default_user: Some(String::new()),
            default_workdir: Some(String::new()),
            ..InitRequest::default()
        };
        guest.apply(request, None);
        assert_eq!(guest.default_user(), "user");
        assert_eq!(guest.default_workdir().as_deref(), Some("/code"));
    }
}
