//! Coded errors. A failure that a user can see has a code (`ATL-1203`), an HTTP status, one
//! sentence of what happened and one of what to do, and a page in `docs/errors/`.
//!
//! The registry below is the only list of codes; a test holds it and the pages together. Numbers
//! are never reused: 1xxx start-up and host, 2xxx requests, 3xxx sandboxes and nodes, 4xxx network,
//! 5xxx storage and templates, 6xxx proxies.

use std::fmt;

/// Shorthand for results whose error has a code.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A stable error code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code {
    /// The number in `ATL-1203`.
    pub number: u16,
    /// HTTP status on the API.
    pub status: u16,
    /// The contract's `error_code`, where it has one for this failure.
    pub wire: Option<&'static str>,
    /// What kind of failure this is, in a few words.
    pub title: &'static str,
    /// What to do, as one sentence; an [`Error`] may carry a better one.
    pub fix: &'static str,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ATL-{:04}", self.number)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ATL-{:04} ({})", self.number, self.title)
    }
}

/// A failure with a code.
#[derive(Debug, Clone)]
pub struct Error {
    /// Which failure.
    pub code: Code,
    /// What happened, as one sentence; where the contract fixes a sentence, that one.
    pub message: String,
    /// What to do about it, as one sentence.
    pub fix: String,
}

impl Error {
    /// An error of `code`, with the code's own advice.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), fix: code.fix.to_owned() }
    }

    /// The same error with better advice.
    #[must_use]
    pub fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, " {}", self.fix) }
    }
}

impl std::error::Error for Error {}

macro_rules! codes {
    ($($number:literal $name:ident $status:literal $wire:expr, $title:literal, $fix:literal;)*) => {
        $(
            #[doc = $title]
            pub const $name: Code = Code {
                number: $number, status: $status, wire: $wire, title: $title, fix: $fix,
            };
        )*

        /// Every code, in order.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

/// The registry of codes.
pub mod codes {
    use super::Code;

    codes! {
        // Start-up and host.
        1001 PORT_IN_USE 500 None, "a port Atoll needs is in use",
            "Stop the program that listens there, or choose another port.";
        1002 DATA_DIR_IN_USE 500 None, "another Atoll runs on this data directory",
            "Stop it, or give this one a directory of its own with --data-dir.";
        1003 PRIVILEGE_MISSING 500 None, "a privilege is missing",
            "Run Atoll as root.";
        1004 HOST_FEATURE_MISSING 500 None, "this host lacks something Atoll needs",
            "Run `atoll doctor`: it says what is missing and how to get it.";
        1005 DISK_FULL 507 None, "the disk is full",
            "Free space on the file system of the data directory, or move it with --data-dir.";
        1006 DATA_DIR_UNUSABLE 500 None, "the data directory cannot be used",
            "Check that it is a directory that root can write, on a local file system.";
        1007 TOOL_MISSING 500 None, "a program Atoll calls is not installed",
            "Install it; on Debian and Ubuntu `make deps` does.";
        1008 BAD_OPTION 500 None, "an option has a value that cannot be used",
            "See `atoll help`.";
        1009 SELF_CHECK_FAILED 500 None, "the self-check at start failed",
            "Run `atoll doctor`, then start again with RUST_LOG=atoll=debug.";
        1010 CERTIFICATE_UNUSABLE 500 None, "the TLS certificate cannot be used",
            "Give a certificate and its key, both in PEM form, with --tls-cert and --tls-key.";
        1011 FILE_NOT_SAVED 500 None, "a file was not saved",
            "Make room, or write to a directory that is yours.";

        // Requests.
        2001 INVALID_REQUEST 400 None, "the request is not valid",
            "Correct the request as the message says.";
        2002 UNAUTHENTICATED 401 None, "no valid credentials",
            "Send a key of this deployment in X-API-Key; `atoll up` prints the development key.";
        2003 FORBIDDEN 403 None, "not allowed with these credentials",
            "Use credentials that may do this.";
        2004 NOT_FOUND 404 None, "there is no such thing",
            "Check the id; a killed or expired sandbox is gone.";
        2005 CONFLICT 409 None, "the present state does not allow this",
            "Try again when the transition has ended.";
        2006 TOO_LARGE 413 None, "the request is too large",
            "Send less at once.";
        2007 NOT_IMPLEMENTED 501 None, "this release does not have that endpoint",
            "See docs/compatibility.md for what this release has.";
        2008 UNSUPPORTED_FIELD 400 None, "this release cannot honour a field of the request",
            "Leave the field out; docs/compatibility.md lists what this release has.";
        2009 CONCURRENCY_LIMIT 429 None, "the team runs as many sandboxes as its tier allows",
            "Kill some, or raise the tier's concurrent_instances.";
        2010 TEMPLATE_NOT_FOUND 404 None, "there is no such template",
            "GET /templates lists the templates there are.";
        2011 DEV_KEY_REFUSED 401 None, "the development key works from this machine only",
            "Start Atoll with --fresh-keys to use it from elsewhere.";
        2012 ROUTE_NOT_FOUND 404 None, "there is no such route",
            "See /openapi.json for the routes.";
        2013 METHOD_NOT_ALLOWED 405 None, "the route has other methods",
            "See /openapi.json for the routes.";
        2014 REQUEST_TIMEOUT 408 None, "the request did not arrive in time",
            "Send headers and body within 10 seconds.";
        2015 SECRETS_UNAVAILABLE 403 None, "secrets are not available",
            "This release has no secrets store.";
        2016 MEMORY_OVERRIDE_DISABLED 400 Some("sandbox_memory_override_disabled"),
            "whether memory is resumed cannot be chosen on connect",
            "Leave the field `memory` out.";
        2017 SANDBOX_PAUSED 409 None, "the sandbox is paused",
            "Resume it first: connect does.";
        2018 SANDBOX_BUSY 409 None, "the sandbox is between two states",
            "Try again in a moment.";
        2019 SANDBOX_ENDING 409 None, "the sandbox is being killed",
            "Create a new one.";
        2020 BUILD_LIMIT 429 None, "the team has as many builds under way as it may",
            "Wait until one is done, or cancel one.";

        // Sandboxes and nodes.
        3001 INTERNAL 500 Some("internal_server_error"), "something failed inside Atoll",
            "The log has the cause; please report it.";
        3002 SANDBOX_START_FAILED 500 Some("sandbox_create_failed"), "a sandbox did not start",
            "Run `atoll doctor`; the log has the cause.";
        3003 CAPACITY 503 Some("sandbox_capacity_unavailable"), "the node has no room left",
            "Retry shortly, or kill sandboxes.";
        3004 SANDBOX_GONE 404 None, "the sandbox has ended",
            "Create a new one.";
        3005 GUEST_UNREACHABLE 500 None, "envd in the sandbox does not answer",
            "Kill the sandbox and create a new one.";
        3006 NODE_UNAVAILABLE 503 None, "no node is ready",
            "Wait until the node has started; GET /health says when.";
        3007 DRIVER_UNSUPPORTED 500 None, "the isolation driver cannot do this on this host",
            "Run `atoll doctor`: it shows what the driver can do here.";
        3008 PLACEMENT_TIMEOUT 504 Some("sandbox_placement_timeout"), "a sandbox did not start in time",
            "Retry; if it stays so, look at the load of the host.";
        3009 HANDLER_TIMEOUT 504 None, "the control plane did not answer in time",
            "Retry; if it stays so, look at the load of the host.";
        3010 CHECKPOINT_FAILED 500 None, "the memory of a sandbox could not be saved or restored",
            "The message has CRIU's word; pausing with `memory: false` keeps the files.";
        3011 INTERPRETER_UNREACHABLE 500 None, "the code interpreter in the sandbox does not answer",
            "Use a template that starts it, such as code-interpreter-v1.";
        3012 CELL_TIMEOUT 504 None, "a cell of code did not end in time",
            "Give it longer, or look for what it waits for.";

        // Network.
        4001 SLOT_FAILED 500 None, "a network slot could not be made",
            "Run `atoll doctor`; it checks namespaces and nft.";
        4002 FIREWALL_FAILED 500 None, "the firewall could not be set",
            "Check that `nft list ruleset` works as root.";
        4003 NO_ADDRESSES 500 None, "no address range is free for sandboxes",
            "Give one that this host does not route with --sandbox-network.";

        // Storage and templates.
        5001 POOL_FAILED 500 None, "the disk pool could not be mounted",
            "Atoll keeps sandboxes' disks on btrfs: install btrfs-progs and see `atoll doctor`.";
        5002 LAYER_CORRUPT 500 None, "a layer is not what its manifest says",
            "Delete the template and build it again.";
        5003 BUILD_FAILED 500 None, "a template build failed",
            "The message names the step; its output is above it.";
        5004 TEMPLATE_MISSING 404 None, "the node does not have this template",
            "Build it again.";
        5005 STEP_FAILED 400 None, "a step of a template build failed",
            "The message has its last lines; `atoll template shell BUILD` opens a terminal where it failed.";
        5006 IMAGE_UNAVAILABLE 400 None, "an image could not be had from its registry",
            "Check its name, and the credentials if it is a private one.";
        5007 IMAGE_REFUSED 400 None, "an image or archive is not fit to be unpacked",
            "The message names the entry; build the image again without it.";
        5008 REGISTRY_REFUSED 400 None, "images are not to be fetched from this address",
            "If the registry is yours, start Atoll with --registry HOST[:PORT].";
        5009 REQUIREMENT_MISSING 400 None, "an image lacks something that every template needs",
            "Add it to the image as the message says.";
        5010 NOT_READY 400 None, "a template's start command was not ready in time",
            "Check the start and ready commands in `atoll template shell BUILD`.";
        5011 FILES_MISSING 400 None, "a COPY step has no files",
            "Build again: the SDK uploads what is missing.";
        5012 BUILD_CANCELLED 409 None, "the build was cancelled",
            "Build again if it was not meant to be.";
        5013 BUILD_INTERRUPTED 503 None, "Atoll was stopped during the build",
            "Build again: steps that were done are not done again.";

        // Proxies.
        6001 PROXY_FAILED 502 None, "the proxy could not reach the sandbox",
            "See the message; a server in the sandbox must listen on the port asked for.";
        6002 HOST_UNKNOWN 404 None, "this deployment has no such host",
            "Use the names of its domain, which E2B_DOMAIN in <data-dir>/env says.";
    }

    /// The code with this number.
    pub fn find(number: u16) -> Option<Code> {
        ALL.iter().copied().find(|code| code.number == number)
    }
}

#[cfg(test)]
mod tests {
    use super::{codes::ALL, *};

    #[test]
    fn codes_are_unique_and_ascend() {
        assert!(ALL.windows(2).all(|pair| pair[0].number < pair[1].number));
    }

    #[test]
    fn every_code_has_a_page_and_no_page_is_left_over() {
        let pages = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
        let mut found: Vec<String> = std::fs::read_dir(pages)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("ATL-"))
            .collect();
        found.sort();
        let expected: Vec<String> = ALL.iter().map(|code| format!("{code}.md")).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_error_reads_as_code_fact_and_advice() {
        let error = Error::new(codes::PORT_IN_USE, "port 3000 is in use.");
        assert_eq!(
            error.to_string(),
            "ATL-1001: port 3000 is in use. Stop the program that listens there, or choose another port."
        );
    }
}
