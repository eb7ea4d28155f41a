//! The `base` template.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use atoll_core::{Error, Result, TemplateId, error::codes, limits::DEVELOPMENT_TIER};
use atoll_storage::{BuildManifest, Layer, LayerDraft};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    Options, Progress, host,
    process::{Job, isolated},
    progress::Estimate,
};

const ALIAS: &str = "base";
const BASE_SCRIPT: &str = include_str!("base.sh");
const PROVISION_SCRIPT: &str = include_str!("provision.sh");

/// The keys that Debian signs its packages with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What a build needs at its peak: about 1.3 GiB, and as much again to be safe.
const NEEDED_BYTES: u64 = 3 << 30;
/// Lines of output that a failure shows.
const SHOWN_LINES: usize = 15;

const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The programs a build calls, with the packages that Debian has them in.
const TOOLS: [(&str, &str); 4] = [
    ("mmdebstrap", "mmdebstrap"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("chroot", "coreutils"),
];

/// Finds the template with the present recipe, or builds it.
pub(crate) async fn ensure(
    storage: &atoll_storage::Handle,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(BuildManifest, bool)> {
    let certificates = host::extra_certificates(&options.ca_bundle)?;
    let recipe = recipe_digest(&certificates);
    let mut earlier: Vec<BuildManifest> = storage
        .builds()
        .await
        .into_iter()
        .filter(|build| build.alias.as_deref() == Some(ALIAS) && build.snapshot.is_none())
        .collect();
    earlier.sort_by_key(|build| build.created_at);
    if let Some(found) = reusable(storage, &earlier, &recipe).await {
        return Ok((offered_with(storage, found, &options.envd_version).await?, false));
    }

    check_host()?;
    let no_random = |error: &dyn std::fmt::Display| {
        Error::new(codes::INTERNAL, format!("the system has no random bytes to give: {error}."))
    };
    // A template keeps its id from build to build.
    let template = match earlier.last() {
        Some(build) => build.template.clone(),
        None => TemplateId::generate().map_err(|error| no_random(&error))?,
    };
    let id = Uuid::new_v4().to_string();
    let draft = build(storage.new_layer().await?, certificates, progress).await?;
    let marker = format!("ENV_ID={template}\nTEMPLATE_ID={template}\nBUILD_ID={id}\n");
    fs::write(draft.dir().join(".e2b"), marker).map_err(|error| unusable(&error))?;
    progress.step(0.98, "writing the layer");
    let created_at = Timestamp::now();
    let layer = Layer { name: ALIAS.into(), recipe: recipe.clone(), created_at };
    let manifest = BuildManifest {
        id,
        template,
        alias: Some(ALIAS.into()),
        layers: vec![draft.commit(layer).await?],
        envd_version: options.envd_version.clone(),
        vcpu: 2,
        memory_mb: 1024,
        disk_mb: DEVELOPMENT_TIER.disk_mb,
        default_user: "user".into(),
        default_workdir: None,
        created_at,
        recipe_digest: recipe,
        step: None,
        parent: None,
        env_vars: Default::default(),
        start: None,
        snapshot: None,
        stack: Vec::new(),
        control_secret: None,
    };
    storage.put_build(&manifest).await?;
    progress.step(1.0, "done");
    Ok((manifest, true))
}

/// The newest build of this recipe whose layers are there.
async fn reusable(
    storage: &atoll_storage::Handle,
    builds: &[BuildManifest],
    recipe: &str,
) -> Option<BuildManifest> {
    for build in builds.iter().rev().filter(|build| build.recipe_digest == recipe) {
        match storage.build(&build.id).await {
            Ok(Some(build)) => return Some(build),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the base template has to be built again"),
        }
    }
    None
}

/// The manifest, stored with the version of envd that it is offered with from now on.
async fn offered_with(
    storage: &atoll_storage::Handle,
    mut manifest: BuildManifest,
    envd_version: &str,
) -> Result<BuildManifest> {
    if manifest.envd_version != envd_version {
        manifest.envd_version = envd_version.to_owned();
        storage.put_build(&manifest).await?;
    }
    Ok(manifest)
}

/// Digest of all that decides what the template holds, but for what the mirrors have today.
fn recipe_digest(certificates: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [
        BASE_SCRIPT.as_bytes(),
        PROVISION_SCRIPT.as_bytes(),
        std::env::consts::ARCH.as_bytes(),
        certificates,
    ] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// Says what is missing before minutes are spent.
fn check_host() -> Result<()> {
    let missing = |what: &str, package: &str| {
        Error::new(codes::TOOL_MISSING, format!("{what} is missing; the base template needs it."))
            .with_fix(format!("Install the package {package}."))
    };
    for (tool, package) in TOOLS {
        if !search_path().split(':').any(|dir| Path::new(dir).join(tool).is_file()) {
            return Err(missing(&format!("`{tool}`"), package));
        }
    }
    if !Path::new(KEYRING).is_file() {
        return Err(missing(KEYRING, "debian-archive-keyring"));
    }
    Ok(())
}

fn search_path() -> String {
    match std::env::var("PATH") {
        Ok(path) => format!("{path}:{TOOL_PATH}"),
        Err(_) => TOOL_PATH.to_owned(),
    }
}

/// Fills the draft. If the future is dropped, the scripts are killed, and then the draft is removed.
async fn build(
    draft: LayerDraft,
    certificates: Vec<u8>,
    progress: &dyn Progress,
) -> Result<LayerDraft> {
    progress.step(0.0, "preparing");
    let (inputs, tree) = (draft.scratch(), draft.dir());
    let prepared = tokio::task::spawn_blocking(move || prepare(&inputs, &tree, &certificates))
        .await
        .unwrap_or_else(|error| Err(Error::new(codes::INTERNAL, format!("{error}."))));
    let mut job = Job::start(prepared?, draft).map_err(|error| unusable(&error))?;
    let mut estimate = Estimate::default();
    let mut last = VecDeque::new();
    while let Some(line) = job.line().await {
        progress.line(&line);
        // mmdebstrap takes the whole run for its last phase; writing the layer comes after.
        if let Some((fraction, what)) = estimate.line(&line) {
            progress.step(fraction.min(0.97), what);
        }
        if last.len() == SHOWN_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    let (draft, status) = job.finish().await.map_err(|error| failed(&error, &last))?;
    if status.success() { Ok(draft) } else { Err(failed(&status, &last)) }
}

/// Checks the room, writes the inputs and returns the command that builds the tree.
fn prepare(inputs: &Path, tree: &Path, certificates: &[u8]) -> Result<Command> {
    let stat = nix::sys::statvfs::statvfs(tree).map_err(|error| unusable(&error.into()))?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    if free < NEEDED_BYTES {
        let message = format!(
            "{} MiB are free for the base template, which takes {} MiB to build.",
            free >> 20,
            NEEDED_BYTES >> 20
        );
        return Err(Error::new(codes::DISK_FULL, message));
    }
    let write = || -> io::Result<PathBuf> {
        host::write_inputs(inputs, certificates)?;
        fs::write(inputs.join("provision.sh"), PROVISION_SCRIPT)?;
        let script = inputs.join("base.sh");
        fs::write(&script, BASE_SCRIPT)?;
        Ok(script)
    };
    let mut command = isolated(&write().map_err(|error| unusable(&error))?);
    command.arg(tree).arg(inputs);
    // What else is set on the host is not the template's business.
    let kept = ["http_proxy", "https_proxy", "no_proxy", "TMPDIR"];
    let kept = kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.env_clear().envs(kept);
    command.env("PATH", search_path()).env("HOME", "/root").env("LC_ALL", "C.UTF-8");
    Ok(command)
}

fn unusable(error: &io::Error) -> Error {
    crate::file::unusable("prepare the build of the base template", error)
}

fn failed(why: &dyn std::fmt::Display, last: &VecDeque<String>) -> Error {
    let output: String = last.iter().flat_map(|line| ["\n  ", line]).collect();
    let message =
        format!("the base template could not be built ({why}); it last printed:{output}\n");
    Error::new(codes::BUILD_FAILED, message).with_fix(
        "Check that this host reaches a Debian mirror (`apt-get update`) and the Python package \
         index (`pip download`): proxies and indexes are those of its apt and pip. Then start again.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_changes_with_the_certificates_only() {
        assert_eq!(recipe_digest(b""), recipe_digest(b""));
        assert_ne!(recipe_digest(b""), recipe_digest(b"x"));
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output_and_advice() {
        let last = VecDeque::from(["E: one".to_owned(), "E: two".to_owned()]);
        let error = failed(&"exit status: 25", &last);
        assert_eq!(error.code, codes::BUILD_FAILED);
        assert!(error.message.contains("exit status: 25"));
        assert!(error.message.contains("\n  E: one\n  E: two\n"), "{error}");
        assert!(error.fix.contains("mirror"));
    }

    #[test]
    fn the_scripts_are_valid_shell() {
        for script in [BASE_SCRIPT, PROVISION_SCRIPT] {
            let status = Command::new("/bin/sh").args(["-n", "-c", script]).status().unwrap();
            assert!(status.success());
        }
    }
}
