//! What the steps do, each in a sandbox of its own.

use std::{collections::VecDeque, io};

use atoll_core::{Error, Result, error::codes};
use atoll_orchestrator::commands::{Command, Output};
use bytes::Bytes;
use futures::{Stream, stream::Empty};

use super::{
    context::Context,
    job::Job,
    room::{Room, room_bytes},
    step::Copy,
};

/// No standard input.
const NOTHING: Option<Empty<io::Result<Bytes>>> = None;

/// Makes the directories of a path that are missing, for a user. `$1` is the path, from the user's home
/// on if it is relative, and `$2` the user; prints the path from the root on.
const WORKDIR: &str = r#"
set -eu
home=/
while IFS=: read -r name _ _ _ _ directory _; do
    [ "$name" != "$2" ] || home=$directory
done < /etc/passwd
case $1 in /*) path=$1 ;; *) path=$home/$1 ;; esac
made= rest=${path#/}
while [ -n "$rest" ]; do
    part=${rest%%/*}
    case $rest in */*) rest=${rest#*/} ;; *) rest= ;; esac
    [ -n "$part" ] || continue
    made=$made/$part
    [ -d "$made" ] || { mkdir -- "$made"; chown -- "$2:" "$made"; }
done
cd -- "${made:-/}"
pwd
"#;

/// Bytes of what a script prints that are kept: more than its last line may have. The shell is the
/// image's, and may print without end.
const LAST_PRINTED: usize = 16 << 10;

/// Prints the name of the user with the id `$1`.
const NAMED: &str = r#"
while IFS=: read -r name _ id _; do
    if [ "$id" = "$1" ]; then echo "$name"; exit; fi
done < /etc/passwd
echo "no user has the id $1" >&2
exit 1
"#;

/// Runs a command of a RUN.
pub(super) async fn run(
    job: &mut Job<'_>,
    room: &Room,
    command: &str,
    user: Option<&str>,
) -> Result<()> {
    let context = match user {
        Some(user) => Context { user: user.to_owned(), ..job.context.clone() },
        None => job.context.clone(),
    };
    let mut lines = job.log.output();
    let exit = room.guest.run(context.shell(command), NOTHING, |stream, bytes| {
        lines.take(stream, bytes);
    });
    let exit = exit.await.map_err(|error| ended(command, error))?;
    let last = lines.end();
    if exit.code == 0 {
        return Ok(());
    }
    Err(last.failure(codes::STEP_FAILED, command, &exit))
}

/// A command that got no end of its own, most likely because its sandbox ended. What else went wrong
/// says what it is.
pub(super) fn ended(command: &str, error: Error) -> Error {
    if error.code != codes::GUEST_UNREACHABLE {
        return error;
    }
    let message = format!("`{command}` could not be run to its end: {}", error.message);
    Error::new(codes::STEP_FAILED, message)
        .with_fix("Build again; if it needs much memory, give the template more.")
}

/// Unpacks uploaded files as a COPY says.
pub(super) async fn copy(job: &mut Job<'_>, room: &Room, copy: &Copy) -> Result<()> {
    let archive = job.shared.files.read(&job.spec.team, &copy.files).await?;
    let (source, destination) =
        (job.context.expanded(&copy.source)?, job.context.expanded(&copy.destination)?);
    let workdir = job.context.workdir.clone();
    let owner = copy.owner.as_deref().map(|owner| job.context.expanded(owner)).transpose()?;
    let limit = room_bytes(job.spec).to_string();
    let mut args = vec!["copy", "--limit", &limit, "--user", &job.context.user];
    for (flag, value) in [
        ("--workdir", workdir.as_deref()),
        ("--owner", owner.as_deref()),
        ("--mode", copy.mode.as_deref()),
    ] {
        if let Some(value) = value {
            args.extend([flag, value]);
        }
    }
    args.extend(["--", &source, &destination]);
    let what = format!("COPY {} {}", copy.source, copy.destination);
    tool(job, room, &what, &args, Some(archive)).await
}

/// Makes the directory of a WORKDIR.
pub(super) async fn workdir(job: &mut Job<'_>, room: &Room, path: &str) -> Result<()> {
    let path = match job.context.resolve(path)? {
        Some(path) => path,
        None => job.context.expanded(path)?,
    };
    let user = job.context.user.clone();
    let made = script(job, room, &format!("WORKDIR {path}"), WORKDIR, [&path, &user]).await?;
    job.context.workdir = Some(made);
    Ok(())
}

/// Makes the user of a USER, if there is none; one that is a number must be there. What comes after a
/// colon, a group, is left to the system: the user has those that it gives it.
pub(super) async fn user(job: &mut Job<'_>, room: &Room, name: &str, sudo: bool) -> Result<()> {
    let name = job.context.expanded(name)?;
    let name = match name.split_once(':') {
        Some((user, group)) if !group.contains(':') => user,
        _ => &name,
    };
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        let what = format!("USER {name}");
        job.context.user = script(job, room, &what, NAMED, [name, ""]).await?;
        return Ok(());
    }
    let mut args = vec!["user"];
    args.extend(sudo.then_some("--sudo"));
    args.extend(["--", name]);
    tool(job, room, &format!("USER {name}"), &args, NOTHING).await?;
    name.clone_into(&mut job.context.user);
    Ok(())
}

/// Runs a command of envd's own.
async fn tool(
    job: &Job<'_>,
    room: &Room,
    what: &str,
    args: &[&str],
    input: Option<impl Stream<Item = io::Result<Bytes>> + Send + 'static>,
) -> Result<()> {
    let mut lines = job.log.output();
    let exit = room.tool(args, input, |stream, bytes| lines.take(stream, bytes)).await;
    let exit = exit.map_err(|error| ended(what, error))?;
    let last = lines.end();
    if exit.code == 0 { Ok(()) } else { Err(last.failure(codes::STEP_FAILED, what, &exit)) }
}

/// Runs a script as root, and gives the last line that it prints.
async fn script(
    job: &Job<'_>,
    room: &Room,
    what: &str,
    script: &str,
    args: [&str; 2],
) -> Result<String> {
    let args = ["-c", script, "sh"].into_iter().chain(args).map(str::to_owned).collect();
    let command = Command {
        program: "/bin/sh".to_owned(),
        args,
        user: Some("root".to_owned()),
        directory: Some("/".to_owned()),
        ..Command::default()
    };
    let mut printed = VecDeque::new();
    let mut lines = job.log.output();
    let exit = room.guest.run(command, NOTHING, |stream, bytes| match stream {
        Output::Out => {
            printed.extend(bytes);
            let surplus = printed.len().saturating_sub(LAST_PRINTED);
            printed.drain(..surplus);
        }
        stream @ Output::Err => lines.take(stream, bytes),
    });
    let exit = exit.await.map_err(|error| ended(what, error))?;
    let last = lines.end();
    if exit.code != 0 {
        return Err(last.failure(codes::STEP_FAILED, what, &exit));
    }
    let printed = String::from_utf8_lossy(printed.make_contiguous());
    Ok(printed.trim_end_matches('\n').rsplit('\n').next().unwrap_or_default().to_owned())
}
