//! Images of a registry.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use atoll_core::{Error, error::codes};
use atoll_template::image::{Image, Registries, resolve};
use atoll_wire::build::Credentials;

use crate::support::{Kind, Layout, Registry, architecture, digest, layer, read_head};

const LIMIT: u64 = 1 << 30;

fn plain(host: &str) -> Registries {
    Registries::parse(&[format!("http://{host}")]).unwrap()
}

fn password(password: &str) -> Credentials {
    Credentials::Basic { username: "user".to_owned(), password: password.to_owned() }
}

async fn fetch(reference: &str, registries: &Registries, into: &Path) -> Result<Image, Error> {
    resolve(reference, None, registries).await?.fetch(into, LIMIT, &|_, _| {}).await
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

fn unpack(image: &Image, into: &Path) {
    for layer in &image.layers {
        let args = ["--archive", layer.path.to_str().unwrap(), into.to_str().unwrap()];
        atoll_envd::unpack::command(args.map(str::to_owned)).unwrap();
    }
}

/// Bytes that no compression makes fewer.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes / 8).flat_map(|_| next()).collect()
}

#[tokio::test]
async fn an_image_is_what_its_layers_make() {
    let registry = Registry::start(Kind::Open);
    let layout = Layout::new();
    let first = layer(|root| {
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/run"), "run").unwrap();
        fs::hard_link(root.join("usr/bin/run"), root.join("usr/bin/again")).unwrap();
        std::os::unix::fs::symlink("/usr/bin", root.join("bin")).unwrap();
        fs::create_dir(root.join("data")).unwrap();
        fs::write(root.join("data/old"), "old").unwrap();
        fs::write(root.join("gone"), "gone").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join("usr/bin/run"), "user.colour", b"blue", flags).unwrap();
    });
    let second = layer(|root| {
        fs::create_dir(root.join("data")).unwrap();
        fs::write(root.join("data/.wh..wh..opq"), "").unwrap();
        fs::write(root.join("data/new"), "new").unwrap();
        fs::write(root.join(".wh.gone"), "").unwrap();
    });
    let third = layer(|root| fs::write(root.join("big"), noise(3 << 20)).unwrap());
    let layers = [(first.clone(), ""), (second, "+gzip"), (third, "+zstd"), (first, "")];
    let ours = layout.image(architecture(), &layers[..3]);
    let other = layout.image("s390x", &layers[1..2]);
    registry.push(layout.multi(&[other, ours.clone()]), "a/b:1");

    let registries = plain(&registry.host());
    let reference = format!("{}/a/b:1", registry.host());
    let remote = resolve(&reference, None, &registries).await.unwrap();
    assert_eq!(remote.digest(), ours["digest"].as_str().unwrap());
    let config = remote.config();
    assert_eq!(config.env[1], ("COLOUR".to_owned(), "blue".to_owned()));
    assert_eq!((config.user.as_str(), config.workdir.as_str()), ("1000:1000", "/srv"));
    assert_eq!((config.entrypoint[0].as_str(), config.cmd[0].as_str()), ("/bin/run", "now"));

    let directory = tempfile::tempdir().unwrap();
    let seen = Mutex::new((0, 0));
    let progress = |done, all| *seen.lock().unwrap() = (done, all);
    let image = remote.fetch(directory.path(), LIMIT, &progress).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), (remote.bytes(), remote.bytes()));
    for layer in &image.layers {
        let content = fs::read(&layer.path).unwrap();
        assert_eq!((digest(&content), content.len() as u64), (layer.digest.clone(), layer.bytes));
    }
    let root = tempfile::tempdir().unwrap();
    unpack(&image, root.path());
    let text = |path: &str| fs::read_to_string(root.path().join(path)).ok();
    assert_eq!(text("usr/bin/again").as_deref(), Some("run"));
    assert_eq!(fs::metadata(root.path().join("usr/bin/run")).unwrap().nlink(), 2);
    assert_eq!(
        (text("data/new").as_deref(), text("data/old"), text("gone")),
        (Some("new"), None, None)
    );
    assert_eq!(fs::read(root.path().join("big")).unwrap(), noise(3 << 20));
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(root.path().join("bin/run"), "user.colour", &mut value[..]);
    // `bin` is absolute: outside of the tree it leads elsewhere.
    assert!(length.is_err());
    let length =
        rustix::fs::getxattr(root.path().join("usr/bin/run"), "user.colour", &mut value[..]);
    assert_eq!(&value[..length.unwrap()], b"blue");

    let by_digest = format!("{}/a/b@{}", registry.host(), remote.digest());
    assert_eq!(resolve(&by_digest, None, &registries).await.unwrap().digest(), remote.digest());
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let registry = Registry::start(Kind::Open);
    let layout = Layout::new();
    let manifest = layout.image("s390x", &[(layer(|_| {}), "")]);
    registry.push(layout.multi(&[manifest]), "other:1");
    let registries = plain(&registry.host());
    for (name, expected) in [
        ("missing:1", "MANIFEST_UNKNOWN"),
        ("other:2", "has no 127.0.0.1"),
        ("other:1", "there is: linux/s390x"),
    ] {
        let error = resolve(&format!("{}/{name}", registry.host()), None, &registries).await;
        let error = error.err().unwrap();
        assert_eq!(error.code, codes::IMAGE_UNAVAILABLE);
        assert!(error.message.contains(expected), "{error}");
    }
    let host = registry.host();
    drop(registry);
    let error = resolve(&format!("{host}/other:1"), None, &registries).await.err().unwrap();
    assert_eq!(error.code, codes::IMAGE_UNAVAILABLE);
    assert!(error.message.contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn a_private_image_needs_its_password() {
    let registry = Registry::start(Kind::Private);
    let layout = Layout::new();
    layout.index(vec![layout.image(architecture(), &[(layer(|_| {}), "+gzip")])]);
    registry.push(&layout, "private:1");
    let registries = plain(&registry.host());
    let reference = format!("{}/private:1", registry.host());
    for (credentials, expected) in
        [(None, "it needs credentials"), (Some(password("wrong")), "to these credentials")]
    {
        let error = resolve(&reference, credentials.as_ref(), &registries).await.err().unwrap();
        assert_eq!(error.code, codes::IMAGE_UNAVAILABLE);
        assert!(error.message.contains(expected), "{error}");
        assert!(!format!("{error:?}").contains("wrong"));
    }
    let remote = resolve(&reference, Some(&password("right")), &registries).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(remote.fetch(directory.path(), LIMIT, &|_, _| {}).await.unwrap().layers.len(), 1);
}

#[tokio::test]
async fn a_certificate_of_its_own_is_taken_only_where_it_is_said() {
    let registry = Registry::start(Kind::Tls);
    let layout = Layout::new();
    layout.index(vec![layout.image(architecture(), &[(layer(|_| {}), "")])]);
    registry.push(&layout, "x:1");
    let reference = format!("{}/x:1", registry.host());
    let strict = Registries::parse(&[registry.host()]).unwrap();
    let error = resolve(&reference, None, &strict).await.err().unwrap();
    assert_eq!(error.code, codes::IMAGE_UNAVAILABLE);
    assert!(error.message.contains("certificate"), "{error}");
    let any = Registries::parse(&[format!("insecure://{}", registry.host())]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fetch(&reference, &any, directory.path()).await.unwrap();
}

#[tokio::test]
async fn what_is_not_what_its_digest_says_is_refused() {
    let registry = Registry::start(Kind::Open);
    let layout = Layout::new();
    let archive = layer(|root| fs::write(root.join("x"), "x").unwrap());
    let manifest = layout.image(architecture(), &[(archive.clone(), "")]);
    layout.index(vec![manifest.clone()]);
    registry.push(&layout, "x:1");
    let registries = plain(&registry.host());
    let reference = format!("{}/x:1", registry.host());
    let directory = tempfile::tempdir().unwrap();
    let remote = resolve(&reference, None, &registries).await.unwrap();
    let error = remote.fetch(directory.path(), 100, &|_, _| {}).await.unwrap_err();
    assert_eq!(error.code, codes::IMAGE_REFUSED, "too large: {error}");

    let file = registry.file_of(&digest(&archive));
    let mut changed = archive;
    changed[600] ^= 1;
    fs::write(file, changed).unwrap();
    let error = remote.fetch(directory.path(), LIMIT, &|_, _| {}).await.unwrap_err();
    assert_eq!(error.code, codes::IMAGE_REFUSED);
    assert!(error.message.contains("not what its digest says"), "{error}");
    assert!(is_empty(directory.path()));

    let file = registry.file_of(manifest["digest"].as_str().unwrap());
    let text =
        fs::read_to_string(&file).unwrap().replace("\"schemaVersion\":2", "\"schemaVersion\": 2");
    fs::write(&file, text).unwrap();
    let by_digest = format!("{}/x@{}", registry.host(), manifest["digest"].as_str().unwrap());
    assert!(resolve(&by_digest, None, &registries).await.is_err());
}

/// Stands between a client and a registry, and breaks connections off after some bytes of a response
/// to a request for a blob, `times` times. Gives the requests for blobs.
fn relay(to: u16, after: usize, times: usize) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&requests);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let seen = Arc::clone(&seen);
            thread::spawn(move || pass_on(client, to, after, times, &seen));
        }
    });
    (host, requests)
}

fn pass_on(mut client: TcpStream, to: u16, after: usize, times: usize, seen: &Mutex<Vec<String>>) {
    loop {
        let head = read_head(&mut client);
        if head.is_empty() {
            return;
        }
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).unwrap();
        // One response for each connection, so that its end is that of the response.
        let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        server.write_all(head.as_bytes()).unwrap();
        let mut most = usize::MAX;
        if head.contains("/blobs/") {
            let mut seen = seen.lock().unwrap();
            seen.push(head);
            // The first is the configuration.
            if seen.len() > 1 && seen.len() <= times.saturating_add(1) {
                most = after;
            }
        }
        let mut passed = 0;
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = server.read(&mut buffer) {
            let length = length.min(most - passed);
            if length == 0 || client.write_all(&buffer[..length]).is_err() {
                break;
            }
            passed += length;
        }
        let _ = client.shutdown(Shutdown::Both);
    }
}

fn big_image(registry: &Registry) {
    let layout = Layout::new();
    let archive = layer(|root| fs::write(root.join("big"), noise(2 << 20)).unwrap());
    layout.index(vec![layout.image(architecture(), &[(archive, "")])]);
    registry.push(&layout, "big:1");
}

#[tokio::test]
async fn a_fetch_that_breaks_off_goes_on() {
    let registry = Registry::start(Kind::Open);
    big_image(&registry);
    let (host, requests) = relay(registry.port, 600_000, 3);
    let directory = tempfile::tempdir().unwrap();
    let image = fetch(&format!("{host}/big:1"), &plain(&host), directory.path()).await.unwrap();
    let content = fs::read(&image.layers[0].path).unwrap();
    assert_eq!(digest(&content), image.layers[0].digest);
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 5);
    assert!(requests[2].contains("range: bytes=") || requests[2].contains("Range: bytes="));
}

#[tokio::test]
async fn a_registry_that_always_breaks_off_is_given_up() {
    let registry = Registry::start(Kind::Open);
    big_image(&registry);
    let (host, _) = relay(registry.port, 50_000, usize::MAX);
    let directory = tempfile::tempdir().unwrap();
    let error = fetch(&format!("{host}/big:1"), &plain(&host), directory.path()).await.unwrap_err();
    assert_eq!(error.code, codes::IMAGE_UNAVAILABLE);
    assert!(error.message.contains("broke off"), "{error}");
    assert!(is_empty(directory.path()));
}

#[tokio::test]
async fn a_dropped_fetch_leaves_nothing() {
    let registry = Registry::start(Kind::Open);
    big_image(&registry);
    let (host, _) = relay(registry.port, 100_000, usize::MAX);
    let directory = tempfile::tempdir().unwrap();
    let remote = resolve(&format!("{host}/big:1"), None, &plain(&host)).await.unwrap();
    let (begun, has_begun) = tokio::sync::watch::channel(false);
    let progress = move |_, _| {
        let _ = begun.send(true);
    };
    let mut has_begun = has_begun;
    tokio::select! {
        result = remote.fetch(directory.path(), LIMIT, &progress) => panic!("{result:?}"),
        begun = has_begun.wait_for(|begun| *begun) => assert!(*begun.unwrap()),
    }
    assert!(is_empty(directory.path()));
    tokio::time::sleep(Duration::ZERO).await;
    assert!(is_empty(directory.path()));
}
