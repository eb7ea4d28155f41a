//! Checkpoints for real: processes in a slot are dumped, and go on in another.
//!
//! Needs root, and CRIU: `ATOLL_CRIU=$(scripts/criu.sh)` names a tree that has it; otherwise the
//! host's own is used. Without a usable one these tests say so and pass.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use atoll_isolation::{
    checkpoint::{
        Checkpoints, Options, Restore, connections,
        criu::Criu,
        probe::{self, Slot},
        target::Target,
    },
    process::FirstProcess,
    seccomp,
};
use atoll_launcher::RunSpec;

/// Ids that no Atoll on this host claims: it begins far below.
const FIRST_UID: u32 = 2_000_000_000;
const IDS: u32 = 65_536;

/// Counts, and keeps a file open that has no name any more.
const COUNTER: &str = "\
exec 7>/gone; echo kept >&7; exec 8</gone; rm /gone
i=0
while :; do i=$((i+1)); echo $i >/new; mv /new /counter; sleep 0.02; done";

/// CRIU, if this test can run at all.
async fn criu() -> Option<Criu> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make sandboxes");
        return None;
    }
    let tree = std::env::var_os("ATOLL_CRIU").map(PathBuf::from);
    match Criu::find(tree.as_deref()).await {
        Ok(criu) => Some(criu),
        Err(cause) => {
            eprintln!("skipped: {cause}; set ATOLL_CRIU=$(scripts/criu.sh)");
            None
        }
    }
}

/// The launcher, static, as Atoll carries it.
fn launcher() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("launcher");
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "--locked", "--package", "atoll-launcher", "--target", &target])
            .arg("--target-dir")
            .arg(&directory)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .status();
        assert!(built.unwrap().success());
        directory.join(target).join("debug/atoll-launcher")
    })
}

/// A slot's namespaces.
struct Namespaces {
    first_uid: u32,
    user: OwnedFd,
    net: OwnedFd,
}

impl Namespaces {
    fn new(number: u32) -> Self {
        let first_uid = FIRST_UID + number * IDS;
        let mut holder = Command::new(launcher())
            .args(["slot", &first_uid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        holder.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", holder.id()));
        for map in ["gid_map", "uid_map"] {
            fs::write(proc.join(map), format!("0 {first_uid} {IDS}")).unwrap();
        }
        let open = |kind: &str| File::open(proc.join("ns").join(kind)).unwrap().into();
        let namespaces = Self { first_uid, user: open("user"), net: open("net") };
        // As every slot has it: CRIU tries a connection.
        let up = Command::new("nsenter")
            .args(["-t", &holder.id().to_string(), "-n", "ip", "link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        drop(holder.stdin.take());
        holder.wait().unwrap();
        namespaces
    }

    fn slot(&self) -> Slot<'_> {
        let (user_ns, net_ns) = (self.user.as_fd(), self.net.as_fd());
        Slot { user_ns, net_ns, first_uid: self.first_uid }
    }
}

/// A layer with the host's shell and what the counter needs.
fn layer(at: &Path) {
    for program in ["/bin/sh", "/bin/sleep", "/bin/mv", "/bin/rm", "/bin/cat"] {
        let needs = Command::new("ldd").arg(program).output().unwrap();
        let needs = String::from_utf8(needs.stdout).unwrap();
        let libraries = needs.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([program]) {
            let copy = at.join(file.trim_start_matches('/'));
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(file, copy).unwrap();
        }
    }
}

fn disk(at: &Path) -> PathBuf {
    for part in ["upper", "work"] {
        fs::create_dir_all(at.join(part)).unwrap();
    }
    at.to_path_buf()
}

/// Runs the counter as a sandbox's first process.
fn start(namespaces: &Namespaces, layer: &Path, disk: &Path, staging: &Path) -> FirstProcess {
    let (_log, log_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let opened = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
    let spec = RunSpec {
        user_ns: opened(namespaces.user.as_raw_fd()),
        net_ns: opened(namespaces.net.as_raw_fd()),
        log: opened(log_end.as_raw_fd()),
        first_uid: namespaces.first_uid,
        layers: vec![text(layer)],
        disk: text(disk),
        staging: text(staging),
        hostname: "sandbox".to_owned(),
        exec: ["/bin/sh", "-c", COUNTER].map(str::to_owned).to_vec(),
        stdin: String::new(),
        listen: 49_983,
        shm_bytes: 1 << 20,
        seccomp: seccomp::program().iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let mut launcher = Command::new(launcher())
        .arg("run")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let request = serde_json::to_vec(&spec).unwrap();
    launcher.stdin.take().unwrap().write_all(&request).unwrap();
    let report = launcher.wait_with_output().unwrap().stdout;
    let report = String::from_utf8(report).unwrap();
    let pid = report.strip_prefix("pid ").unwrap_or_else(|| panic!("{report}"));
    FirstProcess::open(pid.trim().parse().unwrap()).unwrap()
}

fn counted(disk: &Path) -> u64 {
    let text = fs::read_to_string(disk.join("upper/counter")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

async fn counts_past(disk: &Path, number: u64) -> u64 {
    let counting = async {
        while counted(disk) <= number {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        counted(disk)
    };
    tokio::time::timeout(Duration::from_secs(30), counting).await.unwrap()
}

async fn end(process: &FirstProcess) {
    process.kill().unwrap();
    process.wait().await.unwrap();
}

fn copy(disk: &Path, to: &Path) -> PathBuf {
    let copied = Command::new("cp").arg("-a").arg(disk).arg(to).status().unwrap();
    assert!(copied.success());
    // overlayfs refuses a disk that was in use, until somebody has looked after it.
    fs::remove_dir_all(to.join("work/work/incompat")).unwrap();
    to.to_path_buf()
}

/// What the process has in the file without a name.
fn nameless(process: &FirstProcess) -> String {
    fs::read_to_string(format!("/proc/{}/fd/8", process.pid())).unwrap()
}

#[tokio::test]
async fn processes_go_on_in_other_slots_from_where_they_were() {
    let Some(criu) = criu().await else { return };
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    for name in ["layer", "staging", "images"] {
        fs::create_dir(at(name)).unwrap();
    }
    layer(&at("layer"));
    let layers = [at("layer")];
    let checkpoints = Checkpoints::new(Options {
        criu,
        launcher: launcher().to_path_buf(),
        staging: at("staging"),
    });

    let namespaces = Namespaces::new(0);
    let source_disk = disk(&at("disk"));
    let source = start(&namespaces, &layers[0], &source_disk, &at("staging"));
    counts_past(&source_disk, 3).await;

    let target = Target::read(source.pid(), namespaces.first_uid).unwrap();
    let held = checkpoints.dump(&target, &at("images"), None).await.unwrap();
    let saved = copy(&source_disk, &at("saved"));
    let before = counted(&saved);
    assert_eq!(counted(&source_disk), before, "it went on while it was held");
    held.release().await.unwrap();
    counts_past(&source_disk, before).await;
    end(&source).await;

    // Two at once, from the same images.
    let mut restored = Vec::new();
    for number in 1..=2 {
        let namespaces = Namespaces::new(number);
        let disk = at(&format!("disk-{number}"));
        assert!(Command::new("cp").arg("-a").args([&saved, &disk]).status().unwrap().success());
        let work = at(&format!("work-{number}"));
        fs::create_dir(&work).unwrap();
        let restore = Restore {
            images: &at("images"),
            work: &work,
            user_ns: namespaces.user.as_fd(),
            net_ns: namespaces.net.as_fd(),
            first_uid: namespaces.first_uid,
            layers: &layers,
            disk: &disk,
            join: &[],
        };
        let made = checkpoints.restore(restore).await.unwrap();
        restored.push((FirstProcess::open(made.pid).unwrap(), disk, namespaces));
    }
    for (process, disk, namespaces) in &restored {
        let now = counts_past(disk, before).await;
        assert!(now < before + 10_000, "{now} is not a continuation of {before}");
        assert_eq!(nameless(process), "kept\n");
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
        assert!(status.contains(&format!("Uid:\t{0}\t{0}", namespaces.first_uid)), "{status}");
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    for (process, ..) in &restored {
        end(process).await;
    }
}

#[tokio::test]
async fn a_dump_that_nobody_wants_any_more_lets_the_processes_go_on() {
    let Some(criu) = criu().await else { return };
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    for name in ["layer", "staging", "images"] {
        fs::create_dir(at(name)).unwrap();
    }
    layer(&at("layer"));
    let checkpoints = Checkpoints::new(Options {
        criu,
        launcher: launcher().to_path_buf(),
        staging: at("staging"),
    });
    let namespaces = Namespaces::new(3);
    let disk = disk(&at("disk"));
    let process = start(&namespaces, &at("layer"), &disk, &at("staging"));
    counts_past(&disk, 3).await;
    let target = Target::read(process.pid(), namespaces.first_uid).unwrap();
    let held = checkpoints.dump(&target, &at("images"), None).await.unwrap();
    let before = counted(&disk);
    drop(held);
    counts_past(&disk, before).await;
    end(&process).await;
}

#[tokio::test]
async fn connections_that_the_host_opened_into_a_slot_are_closed_and_others_stay() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make namespaces");
        return;
    }
    let namespaces = Namespaces::new(5);
    // Within the slot, but as root of the host, which no sandbox is.
    let in_slot = || namespaces.net.try_clone().unwrap();
    let listener = inside(in_slot(), || std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let connect = move || std::net::TcpStream::connect(address).unwrap();
    let mut client = inside(in_slot(), connect);
    let (mut server, _) = listener.accept().unwrap();
    // As if the sandbox's ids began at the host's root: both ends are its own.
    assert_eq!(connections::close(namespaces.net.as_fd(), 0).await.unwrap(), 0);
    client.write_all(b"open").unwrap();
    server.read_exact(&mut [0; 4]).unwrap();
    assert!(connections::close(namespaces.net.as_fd(), FIRST_UID).await.unwrap() > 0);
    server.read_exact(&mut [0]).unwrap_err();
    client.read_exact(&mut [0]).unwrap_err();
    // A listening socket is left alone.
    inside(in_slot(), connect);
}

/// What `job` makes belongs to the network namespace `net_ns`.
fn inside<T: Send + 'static>(net_ns: OwnedFd, job: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(net_ns.as_fd(), None).unwrap();
        job()
    });
    thread.join().unwrap()
}

#[tokio::test]
async fn the_probe_passes_where_checkpoints_work() {
    let Some(criu) = criu().await else { return };
    let scratch = tempfile::tempdir().unwrap();
    let staging = tempfile::tempdir().unwrap();
    let namespaces = Namespaces::new(4);
    let options =
        Options { criu, launcher: launcher().to_path_buf(), staging: staging.path().to_path_buf() };
    probe::run(options, namespaces.slot(), scratch.path()).await.unwrap();
}
