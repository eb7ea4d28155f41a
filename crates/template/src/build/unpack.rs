//! An image becomes a layer: its archives are unpacked in a sandbox, one over the other, and what
//! every template needs is added.
//!
//! The sandbox is one of `base`, without a network; the image grows in a directory of it. So nothing
//! that an image holds is run, and nothing that reads it has any right.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use atoll_core::{Error, Result, error::codes};
use atoll_storage::{BuildManifest, LayerDraft};
use atoll_wire::build::{BuildSpec, From};
use futures::stream;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio_util::io::ReaderStream;

use super::{
    Shared, base,
    context::{Context, DEFAULT_USER},
    job::{self, Held, Job},
    log::Log,
    room::{Room, room_bytes},
    step::Key,
    work,
};
use crate::{
    host,
    image::{self, Image, ImageConfig, LayerFile, Remote},
};

/// Where an image grows in its sandbox.
const ROOT: &str = "image";
/// To be raised when `envd provision` does something else, so that images are unpacked again.
const PROVISION: &str = "1";
/// Most bytes of a piece of a layer that is read at once.
const PIECE: usize = 256 << 10;
/// Compressed layers may have this many times the bytes of the disk that they are unpacked to.
const COMPRESSED: u64 = 2;
/// `envd provision` ends so when something is missing.
const MISSING: i32 = 66;
/// `envd unpack` ends so when an archive is refused.
const REFUSED: i32 = 65;

/// What is to be unpacked.
enum Source {
    Remote(Box<Remote>),
    Archive(Image),
}

impl Source {
    fn digest(&self) -> &str {
        match self {
            Self::Remote(remote) => remote.digest(),
            Self::Archive(image) => &image.digest,
        }
    }

    fn config(&self) -> &ImageConfig {
        match self {
            Self::Remote(remote) => remote.config(),
            Self::Archive(image) => &image.config,
        }
    }
}

/// Begins a build with an image.
pub(super) async fn from_image<'a>(
    shared: &'a Shared,
    spec: &'a BuildSpec,
    log: Log<'a>,
) -> Result<Job<'a>> {
    // Room for what is fetched, which goes with it.
    let draft = shared.site.storage.new_layer().await?;
    let (source, name) = find(shared, spec, &draft).await?;
    let certificates = host::extra_certificates(&shared.ca_bundle)?;
    let digest = hex::encode(Sha256::digest(&certificates));
    let parts = ["image", source.digest(), std::env::consts::ARCH, PROVISION, &digest];
    let key = Key::first(&spec.team, parts);
    let text = format!("FROM {name}");
    if let Some(found) = job::find(shared, &spec.team, &key, spec.force).await? {
        base::say_cached(&log, &text, &key);
        return Ok(Job::at(shared, spec, log, found, key));
    }
    log.note(format_args!("{text} [{}]", key.short()));
    let context = context(source.config());
    context.check()?;
    let image = match source {
        Source::Archive(image) => image,
        Source::Remote(remote) => fetch(spec, &remote, &draft, &log).await?,
    };
    let layer = unpack(shared, spec, &log, &image, certificates, &text, &key).await?;
    let manifest = base::result(shared, spec, &key, layer.into_iter().collect(), &context, text);
    let held = Held::put(shared, manifest).await?;
    Ok(Job::at(shared, spec, log, held, key))
}

/// What a build on an image begins with. Its own user is for its own program.
fn context(config: &ImageConfig) -> Context {
    let env_vars = config.env.iter().cloned().collect::<BTreeMap<_, _>>();
    Context { env_vars, user: DEFAULT_USER.to_owned(), workdir: None }
}

/// Finds the image, and how it is called.
async fn find(shared: &Shared, spec: &BuildSpec, draft: &LayerDraft) -> Result<(Source, String)> {
    match &spec.from {
        From::Image { reference, credentials } => {
            let remote =
                image::resolve(reference, credentials.as_ref(), &shared.registries).await?;
            Ok((Source::Remote(Box::new(remote)), reference.clone()))
        }
        From::Archive { files } => {
            let archive = shared.files.find(&spec.team, files)?;
            let (directory, limit) = (draft.scratch(), limit(spec));
            let open = move || image::open_archive(&archive, &directory, limit);
            let image = tokio::task::spawn_blocking(open).await.unwrap_or_else(|error| {
                Err(Error::new(codes::INTERNAL, format!("an import was lost: {error}.")))
            })?;
            Ok((Source::Archive(image), "the imported image".to_owned()))
        }
        From::Build { .. } => Err(Error::new(codes::INTERNAL, "a build is no image.")),
    }
}

/// Most bytes of an image before it is unpacked.
fn limit(spec: &BuildSpec) -> u64 {
    room_bytes(spec).saturating_mul(COMPRESSED)
}

async fn fetch(
    spec: &BuildSpec,
    remote: &Remote,
    draft: &LayerDraft,
    log: &Log<'_>,
) -> Result<Image> {
    let told = AtomicU64::new(0);
    let progress = |here: u64, all: u64| {
        // A line for each quarter, and none for small ones.
        let quarter = (here * 4).checked_div(all).unwrap_or(4);
        if all > 16 << 20 && told.fetch_max(quarter, Ordering::Relaxed) < quarter {
            log.note(format_args!("fetched {} of {} MiB", here >> 20, all >> 20));
        }
    };
    remote.fetch(&draft.scratch(), limit(spec), &progress).await
}

/// Makes a layer of an image, fit to be a template's.
async fn unpack(
    shared: &Shared,
    spec: &BuildSpec,
    log: &Log<'_>,
    image: &Image,
    certificates: Vec<u8>,
    text: &str,
    key: &Key,
) -> Result<Option<atoll_core::LayerId>> {
    let begun = Timestamp::now();
    let tools = base_build(shared).await?;
    let room = Room::open(&shared.site, spec, &tools, false).await?;
    for layer in &image.layers {
        apply(&room, log, layer, room_bytes(spec)).await?;
    }
    provision(&room, log, certificates).await?;
    let mib = image.layers.iter().map(|layer| layer.bytes).sum::<u64>() >> 20;
    let seconds = Timestamp::now().duration_since(begun).as_millis() as f64 / 1000.0;
    log.note(format_args!("unpacked {mib} MiB in {seconds:.1}s"));
    room.close(ROOT, job::layer(text, key)).await
}

/// The build of `base`, whose sandboxes have what unpacking needs.
async fn base_build(shared: &Shared) -> Result<BuildManifest> {
    let builds = shared.site.storage.builds().await;
    builds.into_iter().find(|build| build.id == shared.base).ok_or_else(|| {
        Error::new(codes::TEMPLATE_MISSING, "the base template is not there.")
            .with_fix("Start Atoll again: it builds it.")
    })
}

/// Unpacks a layer over those before it.
async fn apply(room: &Room, log: &Log<'_>, layer: &LayerFile, limit: u64) -> Result<()> {
    let archive = tokio::fs::File::open(&layer.path).await.map_err(|error| {
        let message = format!("cannot open {}: {error}.", layer.path.display());
        Error::new(codes::DATA_DIR_UNUSABLE, message)
    })?;
    let archive = ReaderStream::with_capacity(archive, PIECE);
    let args = ["unpack", "--limit", &limit.to_string(), &format!("/{ROOT}")];
    let digest = layer.digest.get(..19).unwrap_or(&layer.digest);
    let mut lines = log.output();
    let exit = room.tool(&args, Some(archive), |stream, bytes| lines.take(stream, bytes)).await;
    let exit = exit.map_err(|error| work::ended(&format!("unpacking layer {digest}"), error))?;
    let last = lines.end();
    match exit.code {
        0 => Ok(()),
        REFUSED => Err(last.failure(codes::IMAGE_REFUSED, &format!("layer {digest}"), &exit)),
        _ => Err(last.failure(codes::BUILD_FAILED, &format!("unpacking layer {digest}"), &exit)),
    }
}

/// Adds what every template needs.
async fn provision(room: &Room, log: &Log<'_>, certificates: Vec<u8>) -> Result<()> {
    let root = format!("/{ROOT}");
    let args = ["provision", "--root", &root, "--ca-bundle", "/dev/stdin"];
    let input = stream::once(async move { Ok(certificates.into()) });
    let mut lines = log.output();
    let exit = room.tool(&args, Some(input), |stream, bytes| lines.take(stream, bytes)).await;
    let exit = exit.map_err(|error| work::ended("preparing the image", error))?;
    let last = lines.end();
    match exit.code {
        0 => Ok(()),
        MISSING => Err(Error::new(codes::REQUIREMENT_MISSING, last.text()).with_fix("")),
        _ => Err(last.failure(codes::BUILD_FAILED, "preparing the image", &exit)),
    }
}
