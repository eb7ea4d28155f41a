//! Images made here, and a registry that has them.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// `user:right`, as the registry keeps it.
const PASSWORDS: &str = "user:$2b$04$5ETNlNSAHI1KnzMNzJXPm./OYz51o/FVqGzcm/XpZntYbme86KWKq\n";

/// The path of a program that tests need, of a Debian package.
pub(crate) fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-tools/usr/bin");
    let mut places = std::env::split_paths(&path).chain([unpacked]).map(|place| place.join(name));
    places.find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{name} is not installed: run scripts/deps.sh --tests (Debian's package is {name})")
    })
}

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A layer: an archive of a directory that `fill` fills.
pub(crate) fn layer(fill: impl FnOnce(&Path)) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    fill(directory.path());
    let mut tar = Command::new("tar");
    tar.args(["--format=posix", "--xattrs", "--numeric-owner", "--sort=name", "-cf", "-", "-C"]);
    run(tar.arg(directory.path()).arg(".")).stdout
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

pub(crate) fn digest(data: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(data)))
}

/// An OCI layout.
pub(crate) struct Layout(pub(crate) TempDir);

impl Layout {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        let version = json!({ "imageLayoutVersion": "1.0.0" }).to_string();
        fs::write(directory.path().join("oci-layout"), version).unwrap();
        Self(directory)
    }

    pub(crate) fn blob(&self, kind: &str, data: &[u8]) -> Value {
        let digest = digest(data);
        let name = digest.trim_start_matches("sha256:");
        fs::write(self.0.path().join("blobs/sha256").join(name), data).unwrap();
        json!({ "mediaType": kind, "digest": digest, "size": data.len() })
    }

    /// An image; layers are archives, and what they are stored as.
    pub(crate) fn image(&self, architecture: &str, layers: &[(Vec<u8>, &str)]) -> Value {
        let ids: Vec<String> = layers.iter().map(|(archive, _)| digest(archive)).collect();
        let config = json!({ "architecture": architecture, "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": ids },
            "config": { "Env": ["PATH=/bin", "COLOUR=blue"], "User": "1000:1000",
                "WorkingDir": "/srv", "Entrypoint": ["/bin/run"], "Cmd": ["now"] } });
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = self.blob(kind, config.to_string().as_bytes());
        let stored = |(archive, suffix): &(Vec<u8>, &str)| match *suffix {
            "+gzip" => self.blob(&format!("{TAR}+gzip"), &gzip(archive)),
            "+zstd" => self.blob(&format!("{TAR}+zstd"), &zstd(archive)),
            _ => self.blob(TAR, archive),
        };
        let layers: Vec<Value> = layers.iter().map(stored).collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config,
            "layers": layers });
        let mut manifest = self.blob(MANIFEST, manifest.to_string().as_bytes());
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifest
    }

    /// Names what `index.json` lists.
    pub(crate) fn index(&self, mut manifests: Vec<Value>) -> &Self {
        if let [one] = manifests.as_mut_slice() {
            one["annotations"] = json!({ "org.opencontainers.image.ref.name": "it" });
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.0.path().join("index.json"), index.to_string()).unwrap();
        self
    }

    /// Lists several manifests as one image.
    pub(crate) fn multi(&self, manifests: &[Value]) -> &Self {
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests });
        self.index(vec![self.blob(kind, index.to_string().as_bytes())])
    }
}

/// A registry on loopback; ends with this.
pub(crate) struct Registry {
    pub(crate) port: u16,
    pub(crate) directory: TempDir,
    process: Child,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Open,
    Private,
    Tls,
}

impl Registry {
    pub(crate) fn start(kind: Kind) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut http = json!({ "secret": "s" });
        let mut config = json!({ "version": 0.1, "log": { "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": path("data") } } });
        match kind {
            Kind::Open => {}
            Kind::Private => {
                fs::write(path("passwords"), PASSWORDS).unwrap();
                config["auth"] = json!({ "htpasswd": { "realm": "r", "path": path("passwords") } });
            }
            Kind::Tls => {
                let mut openssl = Command::new(tool("openssl"));
                openssl.args([
                    "req",
                    "-x509",
                    "-nodes",
                    "-newkey",
                    "rsa:2048",
                    "-subj",
                    "/CN=registry",
                ]);
                openssl.arg("-keyout").arg(path("key")).arg("-out").arg(path("certificate"));
                run(&mut openssl);
                http["tls"] = json!({ "certificate": path("certificate"), "key": path("key") });
            }
        }
        let port = free_port();
        http["addr"] = json!(format!("127.0.0.1:{port}"));
        config["http"] = http;
        // YAML has JSON in it.
        fs::write(path("config.yml"), config.to_string()).unwrap();
        let mut command = Command::new(tool("docker-registry"));
        command.arg("serve").arg(path("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut registry = Self { port, process: command.spawn().unwrap(), directory };
        registry.await_start();
        registry
    }

    fn await_start(&mut self) {
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(self.process.try_wait().unwrap().is_none(), "the registry has ended");
            assert!(Instant::now() < until, "the registry does not start");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Puts the image of a layout there.
    pub(crate) fn push(&self, layout: &Layout, name: &str) {
        let mut skopeo = Command::new(tool("skopeo"));
        skopeo.args(["--insecure-policy", "copy", "--all", "--dest-tls-verify=false"]);
        skopeo.args(["--preserve-digests", "--dest-creds", "user:right"]);
        skopeo.arg(format!("oci:{}:it", layout.0.path().display()));
        run(skopeo.arg(format!("docker://{}/{name}", self.host())));
    }

    /// The file in which it keeps a blob.
    pub(crate) fn file_of(&self, digest: &str) -> PathBuf {
        let digits = digest.trim_start_matches("sha256:");
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&digits[..2]).join(digits).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A server that answers each request with what `answer` says, as whole HTTP; gives what it was
/// asked.
pub(crate) fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let seen = asked.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let request = read_head(&mut stream);
            let response = answer(&request);
            seen.0.lock().unwrap().push(request);
            let _ = stream.write_all(response.as_bytes());
        }
    });
    (address, asked)
}

/// Requests that a server has seen.
#[derive(Clone, Default)]
pub(crate) struct Asked(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl Asked {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A request up to its empty line.
pub(crate) fn read_head(stream: &mut TcpStream) -> String {
    use std::io::Read;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|length| length > 0) {
        head.push(byte[0]);
        // Of TLS, which this is not.
        if head[0] == 0x16 {
            break;
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

pub(crate) fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
