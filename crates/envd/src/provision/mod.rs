//! `envd provision`: makes the root of an image fit to be a template, with nothing of the image's own
//! programs; and `envd user`, for a step that wants another user.
//!
//! What `base` gets from a shell script while it is built (`crates/template/src/provision.sh`), any
//! image gets from this: both are to be kept alike. Doing it twice is doing it once.

mod accounts;
mod certificates;
mod files;

use std::{fs, io, path::Path};

use crate::tool::{Arguments, Failure, Outcome, Reason, usage};
use accounts::Account;
use files::Root;

/// Shells that images have where `/bin/sh` should be: that of distroless images with one, and the
/// places of busybox.
const OTHER_SHELLS: [&str; 4] = ["busybox/sh", "bin/busybox", "usr/bin/busybox", "bin/bash"];
/// Where programs are that a template uses if they are there.
const PROGRAMS: [&str; 4] = ["usr/bin", "bin", "usr/sbin", "sbin"];
/// How every sandbox is named.
const HOSTS: &str = "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n";
/// The name server of every sandbox, on its own loopback.
const RESOLVER: &str = "nameserver 169.254.0.22\n";
/// Says which shell this is to programs, and has a prompt.
const SHELL: &str = "export SHELL=/bin/bash\nexport PS1='\\w \\$ '\n";
/// Login shells read what interactive ones do.
const PROFILE: &str = r#"
if [ -n "${HOME-}" ]; then
  if [ -f "$HOME/.bashrc" ] && [ -n "${BASH_VERSION-}" ]; then . "$HOME/.bashrc"; fi
  if [ -f "$HOME/.profile" ]; then . "$HOME/.profile"; fi
fi
"#;
/// Stands in for bash: a link would not do for programs that look at the name they are called by.
const BASH: &str = "#!/bin/sh\nexec /bin/sh \"$@\"\n";

/// `envd provision [--root DIR] [--ca-bundle FILE]`: makes the tree at DIR, `/` if nothing is said,
/// fit to be a template that trusts the certificates of FILE too.
///
/// # Errors
/// `Missing` when it lacks what cannot be made, `Disk`.
pub fn command(args: impl IntoIterator<Item = String>) -> Outcome<Vec<String>> {
    let args = Arguments::parse(args, &["root", "ca-bundle"], &[])?;
    if !args.rest.is_empty() {
        return Err(usage("envd provision [--root DIR] [--ca-bundle FILE]"));
    }
    // Before the root changes. Comments of a bundle may be in any encoding.
    let extra = args.value("ca-bundle").map(fs::read).transpose();
    let extra = extra.map_err(|error| usage(format!("the CA bundle cannot be read: {error}")))?;
    provision(&enter(&args)?, &String::from_utf8_lossy(&extra.unwrap_or_default()))
}

/// `envd user [--root DIR] [--sudo] NAME`: makes a user with a home if there is none of that name,
/// who may use sudo without a password if asked.
///
/// # Errors
/// `Usage` for a name that is none, `Disk`.
pub fn user_command(args: impl IntoIterator<Item = String>) -> Outcome<Vec<String>> {
    let args = Arguments::parse(args, &["root"], &["sudo"])?;
    let [name] = args.rest.as_slice() else {
        return Err(usage("envd user [--root DIR] [--sudo] NAME"));
    };
    let root = enter(&args)?;
    let made = || -> io::Result<Vec<String>> {
        let user = Account::ensure(&root, name, 1000)?;
        let may = args.value("sudo").is_some().then(|| sudo(&root, &user));
        Ok(may.transpose()?.flatten().into_iter().collect())
    };
    if accounts::is_name(name) {
        made().map_err(failed)
    } else {
        Err(usage("that is no user name"))
    }
}

/// Makes the tree the root, so that its links mean what they mean in a sandbox.
fn enter(args: &Arguments) -> Outcome<Root> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if let Some(root) = args.value("root") {
        rustix::process::chroot(root)
            .and_then(|()| rustix::process::chdir("/"))
            .map_err(|error| Failure::disk(root, error))?;
    }
    Ok(Root::new("/"))
}

fn failed(error: io::Error) -> Failure {
    Failure::disk("the image", error)
}

/// Makes the tree at `root` fit to be a template.
fn provision(root: &Root, extra: &str) -> Outcome<Vec<String>> {
    let mut notices = vec![distribution(root)];
    if !shell(root).map_err(failed)? {
        return Err(Failure::new(
            Reason::Missing,
            "the image has no shell: a template needs /bin/sh. Take a variant of the image with one, \
             or add busybox to it.",
        ));
    }
    let rest = || -> io::Result<Vec<String>> {
        let mut notices = Vec::new();
        directories(root)?;
        notices.extend(bash(root)?);
        let user = Account::ensure(root, "user", 1000)?;
        user.join(root, "sudo")?;
        accounts::shadow(root)?;
        accounts::without_password(root, &["root", "user"])?;
        notices.extend(sudo(root, &user)?);
        shells(root)?;
        names(root)?;
        certificates::trust(root, extra)?;
        root.open_to_all("usr/local")?;
        root.set_mode("code", 0o777)?;
        Ok(notices)
    };
    notices.extend(rest().map_err(failed)?);
    Ok(notices)
}

/// What the image says it is.
fn distribution(root: &Root) -> String {
    let release = ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .find_map(|path| root.read(path).ok().flatten())
        .unwrap_or_default();
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        let value = line.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.chars().filter(|c| !c.is_control()).collect::<String>())
    };
    match (value("ID"), value("VERSION_ID")) {
        (Some(id), Some(version)) => format!("the distribution is {id} {version}"),
        (Some(id), None) => format!("the distribution is {id}"),
        _ => "the distribution is unknown: the image has no /etc/os-release".to_owned(),
    }
}

/// Whether there is a `/bin/sh`; made from another shell if there is one.
fn shell(root: &Root) -> io::Result<bool> {
    if root.is_program("bin/sh") {
        return Ok(true);
    }
    let Some(other) = OTHER_SHELLS.iter().find(|path| root.is_program(path)) else {
        return Ok(false);
    };
    root.directory("bin", 0o755)?;
    root.link("bin/sh", Path::new("/").join(other))?;
    Ok(root.is_program("bin/sh"))
}

fn bash(root: &Root) -> io::Result<Option<String>> {
    if root.is_program("bin/bash") {
        return Ok(None);
    }
    match ["usr/bin/bash", "usr/local/bin/bash"].iter().find(|path| root.is_program(path)) {
        Some(other) => root.link("bin/bash", Path::new("/").join(other))?,
        None => {
            root.write("bin/bash", BASH, 0o755)?;
            let notice = "the image has no bash: /bin/sh runs in its place";
            return Ok(Some(notice.to_owned()));
        }
    }
    Ok(None)
}

fn directories(root: &Root) -> io::Result<()> {
    for (path, mode) in [
        ("tmp", 0o1777),
        ("var/tmp", 0o1777),
        ("run", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("root", 0o700),
        ("usr/local/bin", 0o755),
        ("code", 0o777),
        // Mount points of every sandbox.
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
    ] {
        root.directory(path, mode)?;
    }
    // Images made by hand have them closed to users.
    root.set_mode("tmp", 0o1777)?;
    root.set_mode("var/tmp", 0o1777)
}

/// Lets a user become root without a password, where there is a sudo.
fn sudo(root: &Root, user: &Account) -> io::Result<Option<String>> {
    if !PROGRAMS.iter().any(|path| root.is_program(&format!("{path}/sudo"))) {
        return Ok(Some(format!("the image has no sudo: {} cannot become root", user.name)));
    }
    root.directory("etc/sudoers.d", 0o750)?;
    let rule = format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", user.name);
    // A dot would make sudo ignore the file.
    let file = format!("etc/sudoers.d/{}", user.name.replace('.', "_"));
    root.write(&file, &rule, 0o440)?;
    Ok(None)
}

fn shells(root: &Root) -> io::Result<()> {
    root.directory("etc/profile.d", 0o755)?;
    root.write("etc/profile.d/shell.sh", SHELL, 0o644)?;
    match root.read("etc/profile")? {
        Some(profile) if profile.contains(PROFILE) => Ok(()),
        Some(profile) => root.write("etc/profile", &(files::line_end(profile) + PROFILE), 0o644),
        // What distributions' own do.
        None => {
            let all = "for script in /etc/profile.d/*.sh; do\n  . \"$script\"\ndone\n";
            root.write("etc/profile", &format!("{all}{PROFILE}"), 0o644)
        }
    }
}

fn names(root: &Root) -> io::Result<()> {
    root.write("etc/hosts", HOSTS, 0o644)?;
    root.write("etc/hostname", "sandbox\n", 0o644)?;
    if root.read("etc/machine-id")?.is_some() {
        root.write("etc/machine-id", "", 0o444)?;
    }
    // Often a link to a file of a service that does not run in a sandbox.
    root.remove("etc/resolv.conf")?;
    root.write("etc/resolv.conf", RESOLVER, 0o644)
}
