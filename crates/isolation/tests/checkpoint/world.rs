//! A driver with a CRIU, the namespaces that a slot consists of, and a template.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use atoll_core::{InstanceId, SandboxId};
use atoll_isolation::{
    Driver, Limits, Place, Running, Spec,
    checkpoint::criu::Criu,
    container::{Container, Options},
};
use tempfile::TempDir;

use crate::support;

/// Ids that no Atoll on this host claims: it begins far below.
const FIRST_UID: u32 = 2_000_000_000;
const IDS: u32 = 65_536;

pub(crate) const LIMITS: Limits = Limits { vcpu: 1, memory: 256 << 20, processes: 100 };

/// Longest that anything here waits for what should come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Static programs, as Atoll carries them.
fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("launcher");
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "--locked", "--bins", "--target", &target])
            .args(["--package", "atoll-launcher", "--package", "atoll-envd"])
            .arg("--target-dir")
            .arg(&directory)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .status();
        assert!(built.unwrap().success());
        directory.join(target).join("debug")
    })
}

/// The namespaces of a slot.
pub(crate) struct Namespaces {
    first_uid: u32,
    user: OwnedFd,
    pub(crate) net: OwnedFd,
}

impl Namespaces {
    pub(crate) fn new(number: u32) -> Self {
        let first_uid = FIRST_UID + number * IDS;
        let mut holder = Command::new(programs().join("atoll-launcher"))
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

    pub(crate) fn place(&self) -> Place<'_> {
        let (user_ns, net_ns) = (self.user.as_fd(), self.net.as_fd());
        Place { user_ns, net_ns, first_uid: self.first_uid }
    }

    /// What `job` makes belongs to the network namespace.
    pub(crate) fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let net = self.net.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(net.as_fd(), None).unwrap();
            job()
        });
        thread.join().unwrap()
    }
}

/// A driver whose checkpoints were tried, and a directory.
pub(crate) struct World {
    directory: TempDir,
    instance: InstanceId,
    id: SandboxId,
    /// Run through its descriptor, as `atoll up` does.
    launcher: File,
    pub(crate) driver: Container,
}

impl World {
    /// None, with a word why, where there is no CRIU to be had.
    pub(crate) async fn new(number: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can make sandboxes");
            return None;
        }
        let criu = std::env::var_os("ATOLL_CRIU").map(PathBuf::from);
        if let Err(cause) = Criu::find(criu.as_deref()).await {
            eprintln!("skipped: {cause}; set ATOLL_CRIU=$(scripts/criu.sh)");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let instance = InstanceId::generate().unwrap();
        let launcher = File::open(programs().join("atoll-launcher")).unwrap();
        let driver = start(&directory, &instance, &launcher, HashSet::new()).await;
        let id = SandboxId::generate().unwrap();
        let world = Self { directory, instance, id, launcher, driver };
        let namespaces = Namespaces::new(number);
        let scratch = world.make("probe");
        world.driver.probe_memory(namespaces.place(), &scratch).await.unwrap();
        Some(world)
    }

    /// Ends the driver and starts it again.
    pub(crate) async fn restart(&mut self, keep: &[&Running]) {
        self.driver.shutdown().await;
        let keep = keep.iter().map(|running| running.identity().cgroup).collect();
        self.driver = start(&self.directory, &self.instance, &self.launcher, keep).await;
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn make(&self, name: &str) -> PathBuf {
        fs::create_dir(self.at(name)).unwrap();
        self.at(name)
    }

    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        for part in ["upper", "work"] {
            fs::create_dir_all(self.at(name).join(part)).unwrap();
        }
        self.at(name)
    }

    /// A copy of what was held, or of such a copy.
    pub(crate) fn copy(&self, disk: &str, to: &str) -> PathBuf {
        let (from, to) = (self.at(disk), self.at(to));
        assert!(Command::new("cp").arg("-a").args([&from, &to]).status().unwrap().success());
        // overlayfs refuses a disk that was in use, until somebody has looked after it.
        let _ = fs::remove_dir_all(to.join("work/work/incompat"));
        to
    }

    /// The host's shell and what the tests' programs need, and envd.
    pub(crate) fn layer(&self) -> PathBuf {
        let layer = self.at("layer");
        if layer.exists() {
            return layer;
        }
        let names = ["sh", "sleep", "mv", "rm", "cat", "mkdir", "rmdir", "ln"];
        for program in names.map(|name| format!("/bin/{name}")) {
            let needs = Command::new("ldd").arg(&program).output().unwrap();
            let needs = String::from_utf8(needs.stdout).unwrap();
            let libraries = needs.split_whitespace().filter(|word| word.starts_with('/'));
            for file in libraries.chain([&*program]) {
                let copy = layer.join(file.trim_start_matches('/'));
                fs::create_dir_all(copy.parent().unwrap()).unwrap();
                fs::copy(file, copy).unwrap();
            }
        }
        fs::copy(programs().join("envd"), layer.join("bin/envd")).unwrap();
        fs::create_dir(layer.join("etc")).unwrap();
        fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
        fs::write(layer.join("etc/group"), "root:x:0:\n").unwrap();
        layer
    }

    pub(crate) fn spec<'a>(&'a self, slot: &'a Namespaces, disk: &Path) -> Spec<'a> {
        Spec {
            id: &self.id,
            place: slot.place(),
            layers: vec![self.layer()],
            disk: disk.to_path_buf(),
            limits: LIMITS,
            exec: Vec::new(),
            stdin: String::new(),
            listen: 49_983,
        }
    }

    pub(crate) async fn start(
        &self,
        slot: &Namespaces,
        disk: &str,
        exec: &[&str],
        stdin: &str,
    ) -> Running {
        let exec = exec.iter().map(|&word| word.to_owned()).collect();
        let disk = self.disk(disk);
        let spec = Spec { exec, stdin: stdin.to_owned(), ..self.spec(slot, &disk) };
        self.driver.start(spec).await.unwrap()
    }

    pub(crate) fn groups(&self) -> Vec<String> {
        support::groups(&self.driver)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        support::clean(&self.instance);
    }
}

async fn start(
    directory: &TempDir,
    instance: &InstanceId,
    launcher: &File,
    keep: HashSet<String>,
) -> Container {
    let options = Options {
        instance: instance.clone(),
        launcher: format!("/proc/{}/fd/{}", std::process::id(), launcher.as_raw_fd()).into(),
        staging: directory.path().join("staging"),
        ready: 0,
        keep,
        criu: std::env::var_os("ATOLL_CRIU").map(PathBuf::from),
    };
    Container::start(options).await.unwrap()
}

/// Waits until `condition` gives something.
pub(crate) async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let met = async {
        loop {
            if let Some(met) = condition() {
                return met;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, met).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

pub(crate) async fn end(running: Running) {
    running.kill().unwrap();
    running.process.wait().await.unwrap();
    running.cgroup.remove().await.unwrap();
}
