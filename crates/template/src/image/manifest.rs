//! What images are described with: indexes, manifests and configurations, of OCI's kind and of the
//! one that Docker had before.

use atoll_core::{Error, Result};
use serde::{Deserialize, de::IgnoredAny};

use super::{ImageConfig, reference::Digest, refused, told, unavailable};

/// Bytes of a document.
pub(super) const LARGEST: usize = 4 << 20;
/// Layers of an image. Docker builds none with more than 127.
pub(super) const MOST_LAYERS: usize = 500;

/// What a registry is asked for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Kinds of configurations of images; other manifests describe charts, signatures and the like.
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Kinds of layers that are archives. Which compression it is, the file itself says.
const LAYERS: [&str; 8] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// An index or a manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u32,
    manifests: Option<Vec<Listed>>,
    config: Option<Listed>,
    layers: Option<Vec<Listed>>,
    fs_layers: Option<IgnoredAny>,
}

/// Something else that a document names.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

/// What an image runs on.
#[derive(Clone, Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// A blob: its digest and its bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// What a document is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Described {
    /// An index: the manifest for this machine is another document.
    Elsewhere(Blob),
    /// A manifest: configuration and layers.
    Here { config: Blob, layers: Vec<Blob> },
}

/// How images call this machine.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn malformed(image: &str, why: impl std::fmt::Display) -> Error {
    refused(format!("the manifest of {image} is malformed: {}.", told(&why.to_string())))
}

/// Reads a document of an image.
pub(super) fn read(image: &str, text: &[u8]) -> Result<Described> {
    let document: Document =
        serde_json::from_slice(text).map_err(|error| malformed(image, error))?;
    if document.schema_version == 1 || document.fs_layers.is_some() {
        return Err(refused(format!(
            "{image} has a manifest of schema 1, which nobody makes any more."
        )));
    }
    if let Some(manifests) = document.manifests {
        return choose(image, &manifests).map(Described::Elsewhere);
    }
    let (Some(config), Some(layers)) = (document.config, document.layers) else {
        return Err(malformed(image, "it has no configuration or no layers"));
    };
    if !CONFIGS.contains(&config.media_type.as_str()) {
        let kind = told(&config.media_type);
        return Err(refused(format!("{image} is no image of a container, but of type {kind:?}.")));
    }
    if layers.len() > MOST_LAYERS {
        let count = layers.len();
        return Err(refused(format!("{image} has {count} layers; {MOST_LAYERS} are the most.")));
    }
    if let Some(layer) = layers.iter().find(|layer| !LAYERS.contains(&layer.media_type.as_str())) {
        let kind = told(&layer.media_type);
        return Err(refused(format!(
            "{image} has a layer of type {kind:?}, which is not known here."
        )));
    }
    let layers = layers.iter().map(|layer| blob(image, layer)).collect::<Result<_>>()?;
    Ok(Described::Here { config: blob(image, &config)?, layers })
}

fn blob(image: &str, listed: &Listed) -> Result<Blob> {
    let digest = Digest::parse(&listed.digest);
    let digest = digest.ok_or_else(|| malformed(image, "a digest is not one of SHA-256"))?;
    Ok(Blob { digest, size: listed.size })
}

/// The manifest for this machine. Where no platform is said there is only one to take.
fn choose(image: &str, manifests: &[Listed]) -> Result<Blob> {
    let is_ours =
        |platform: &Platform| platform.os == "linux" && platform.architecture == architecture();
    let fits = |listed: &&Listed| listed.platform.as_ref().is_some_and(is_ours);
    let only = || match manifests {
        [one] if one.platform.is_none() => Some(one),
        _ => None,
    };
    if let Some(listed) = manifests.iter().find(fits).or_else(only) {
        return blob(image, listed);
    }
    let platforms = manifests.iter().filter_map(|listed| listed.platform.as_ref());
    let mut names: Vec<String> = platforms
        // What builders add to say how an image was built.
        .filter(|platform| platform.os != "unknown")
        .map(|platform| format!("{}/{}", told(&platform.os), told(&platform.architecture)))
        .collect();
    names.sort();
    names.dedup();
    names.truncate(20);
    let (ours, there) = (architecture(), names.join(", "));
    Err(unavailable(match names.as_slice() {
        [] => format!("{image} does not say which of its manifests is for linux/{ours}."),
        _ => format!("{image} is not there for linux/{ours}; there is: {there}."),
    }))
}

/// The configuration of an image.
#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<Settings>,
    #[serde(default)]
    pub(super) rootfs: Root,
}

/// The archives that layers are without compression.
#[derive(Default, Deserialize)]
pub(super) struct Root {
    #[serde(default)]
    pub(super) diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Settings {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
}

impl Config {
    /// Reads the configuration of an image, which must be for this machine.
    pub(super) fn read(image: &str, text: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(text).map_err(|error| {
            refused(format!(
                "the configuration of {image} is malformed: {}.",
                told(&error.to_string())
            ))
        })?;
        let (theirs, ours) = (&config.architecture, architecture());
        if theirs.is_empty() || theirs == ours {
            return Ok(config);
        }
        let theirs = told(theirs);
        Err(unavailable(format!(
            "{image} is for linux/{theirs}, and this machine is linux/{ours}."
        )))
    }

    /// How it is to be run.
    pub(super) fn settings(self) -> ImageConfig {
        let settings = self.config.unwrap_or_default();
        let variable = |text: String| {
            let (name, value) = text.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        ImageConfig {
            env: settings.env.unwrap_or_default().into_iter().filter_map(variable).collect(),
            user: settings.user.unwrap_or_default(),
            workdir: settings.working_dir.unwrap_or_default(),
            entrypoint: settings.entrypoint.unwrap_or_default(),
            cmd: settings.cmd.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::error::codes;
    use serde_json::{Value, json};

    use super::*;

    fn described(document: &Value) -> Result<Described> {
        read("x", document.to_string().as_bytes())
    }

    fn listed(kind: &str, digit: &str, architecture: Option<&str>) -> Value {
        let platform = architecture.map(|name| json!({ "os": "linux", "architecture": name }));
        json!({ "mediaType": kind, "digest": format!("sha256:{}", digit.repeat(64)), "size": 7,
            "platform": platform })
    }

    #[test]
    fn an_index_names_the_manifest_for_this_machine() {
        let index = json!({ "schemaVersion": 2, "manifests": [
            listed("m", "a", Some("s390x")), listed("m", "b", Some(architecture())) ] });
        let digest = Digest::parse(&format!("sha256:{}", "b".repeat(64))).unwrap();
        assert_eq!(described(&index).unwrap(), Described::Elsewhere(Blob { digest, size: 7 }));
        let without = json!({ "schemaVersion": 2, "manifests": [
            listed("m", "a", Some("s390x")), listed("m", "b", Some("riscv64")) ] });
        let error = described(&without).unwrap_err();
        assert_eq!(error.code, codes::IMAGE_UNAVAILABLE);
        assert!(error.message.contains("there is: linux/riscv64, linux/s390x"), "{error}");
    }

    #[test]
    fn only_images_are_taken() {
        let layer = || listed(LAYERS[1], "b", None);
        let manifest = |config: &str, layers: Vec<Value>| json!({ "schemaVersion": 2, "config": listed(config, "a", None), "layers": layers });
        assert!(described(&manifest(CONFIGS[0], vec![layer(), layer()])).is_ok());
        for bad in [
            json!({ "schemaVersion": 1, "fsLayers": [] }),
            json!({ "schemaVersion": 2 }),
            json!([]),
            manifest("application/vnd.cncf.helm.config.v1+json", vec![layer()]),
            manifest(
                CONFIGS[0],
                vec![listed(
                    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                    "a",
                    None,
                )],
            ),
            manifest(CONFIGS[0], vec![listed(LAYERS[0], "../", None)]),
            manifest(CONFIGS[0], (0..=MOST_LAYERS).map(|_| layer()).collect()),
        ] {
            assert_eq!(described(&bad).unwrap_err().code, codes::IMAGE_REFUSED, "{bad}");
        }
    }

    #[test]
    fn a_configuration_is_read_as_it_is() {
        let text = json!({ "architecture": architecture(), "config": {
            "Env": ["PATH=/bin", "EMPTY=", "EQUALS=a=b", "nothing"], "User": "1:2", "WorkingDir": "/w",
            "Entrypoint": null, "Cmd": ["a", "b"] } });
        let config = Config::read("x", text.to_string().as_bytes()).unwrap().settings();
        let env = [("PATH", "/bin"), ("EMPTY", ""), ("EQUALS", "a=b")];
        assert_eq!(config.env, env.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!((config.user.as_str(), config.workdir.as_str()), ("1:2", "/w"));
        assert_eq!((config.entrypoint.len(), config.cmd.len()), (0, 2));
        assert!(Config::read("x", br#"{"architecture":"s390x"}"#).is_err());
    }
}
