//! Users and groups, in whatever account files an image has.
//!
//! The files are edited as text: lines that are not understood stay as they are.

use std::{
    collections::HashSet,
    io,
    os::unix::fs::{MetadataExt, chown},
};

use super::files::{Root, line_end};

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";
/// Where passwords really are. Images made by hand do not have them.
const SHADOW: &str = "etc/shadow";
const GROUP_SHADOW: &str = "etc/gshadow";
/// The last id that a sandbox has is 65535; those from 65534 on are nobody's.
const IDS_END: u32 = 65_534;
/// As long as Linux' tools let them be.
const LONGEST_NAME: usize = 32;

/// An account that is there.
pub(super) struct Account {
    pub(super) name: String,
}

/// Whether this may be the name of a user.
pub(super) fn is_name(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    first && name.len() <= LONGEST_NAME && name.chars().all(rest)
}

impl Account {
    /// The user of that name with a group and a home; the id of a new one is the first free one from
    /// `first` on.
    pub(super) fn ensure(root: &Root, name: &str, first: u32) -> io::Result<Self> {
        let passwd = root.read(PASSWD)?.unwrap_or_default();
        let (uid, gid, home) = match line_of(&passwd, name).and_then(ids) {
            Some((uid, gid, home)) => (uid, gid, home.to_owned()),
            None => Self::add(root, name, first, passwd)?,
        };
        let home = home.trim_matches('/');
        // Some accounts have none, or share that of the system.
        if !home.is_empty() && !home.split('/').any(|part| part == "..") {
            root.directory(home, 0o755)?;
            let path = root.path(home);
            if std::fs::metadata(&path)?.uid() == 0 && uid != 0 {
                chown(&path, Some(uid), Some(gid))?;
            }
            root.copy("etc/skel", home, (uid, gid))?;
        }
        Ok(Self { name: name.to_owned() })
    }

    fn add(root: &Root, name: &str, first: u32, passwd: String) -> io::Result<(u32, u32, String)> {
        // An image may have no account file at all; then it has no root either.
        let passwd =
            if passwd.is_empty() { "root::0:0:root:/root:/bin/bash\n".to_owned() } else { passwd };
        let groups = match root.read(GROUP)? {
            Some(groups) if !groups.is_empty() => groups,
            _ => "root:x:0:\n".to_owned(),
        };
        let taken = numbers(&passwd).chain(numbers(&groups)).collect::<HashSet<u32>>();
        let free = |from: u32| (from..IDS_END).find(|id| !taken.contains(id));
        let uid = free(first).ok_or_else(|| io::Error::other("every user id is taken"))?;
        let gid = line_of(&groups, name).and_then(|line| number(line, 2));
        let home = format!("/home/{name}");
        if gid.is_none() {
            root.write(GROUP, &(line_end(groups) + &format!("{name}:x:{uid}:\n")), 0o644)?;
            append_if_there(root, GROUP_SHADOW, &format!("{name}:!::\n"))?;
        }
        let gid = gid.unwrap_or(uid);
        // Without a shadow the password is here: none.
        let password = if root.read(SHADOW)?.is_some() { "x" } else { "" };
        let line = format!("{name}:{password}:{uid}:{gid}::{home}:/bin/bash\n");
        append_if_there(root, SHADOW, &format!("{name}::19000:0:99999:7:::\n"))?;
        root.write(PASSWD, &(line_end(passwd) + &line), 0o644)?;
        Ok((uid, gid, home))
    }

    /// Makes it a member of a group, if there is one of that name.
    pub(super) fn join(&self, root: &Root, group: &str) -> io::Result<()> {
        for file in [GROUP, GROUP_SHADOW] {
            edit(root, file, group, |fields| {
                let Some(members) = fields.get_mut(3) else { return };
                if !members.split(',').any(|member| member == self.name) {
                    let comma = if members.is_empty() { "" } else { "," };
                    *members = format!("{members}{comma}{}", self.name);
                }
            })?;
        }
        Ok(())
    }
}

/// Moves passwords to where only root can read them, if they are not there: tools of small images do not
/// know users without any password.
pub(super) fn shadow(root: &Root) -> io::Result<()> {
    if root.read(SHADOW)?.is_some() {
        return Ok(());
    }
    let (mut accounts, mut shadow) = (String::new(), String::new());
    for line in root.read(PASSWD)?.unwrap_or_default().lines() {
        let mut fields: Vec<&str> = line.split(':').collect();
        if let [name, password, ..] = fields.as_mut_slice() {
            let hash = if matches!(*password, "" | "x") { "*" } else { *password };
            shadow += &format!("{name}:{hash}:19000:0:99999:7:::\n");
            *password = "x";
        }
        accounts += &(fields.join(":") + "\n");
    }
    root.write(PASSWD, &accounts, 0o644)?;
    root.write(SHADOW, &shadow, 0o640)
}

/// Lets these users log in without a password.
pub(super) fn without_password(root: &Root, names: &[&str]) -> io::Result<()> {
    let has_shadow = root.read(SHADOW)?.is_some();
    for name in names {
        for file in [PASSWD, SHADOW] {
            edit(root, file, name, |fields| {
                let Some(password) = fields.get_mut(1) else { return };
                if file == SHADOW || !has_shadow {
                    password.clear();
                }
            })?;
        }
    }
    Ok(())
}

/// Changes the fields of the line of `name`, in a file that is there.
fn edit(root: &Root, file: &str, name: &str, change: impl Fn(&mut Vec<String>)) -> io::Result<()> {
    let Some(text) = root.read(file)? else { return Ok(()) };
    let edited: String = text
        .split_inclusive('\n')
        .map(|line| {
            if !is_of(line, name) {
                return line.to_owned();
            }
            let mut fields: Vec<String> = line.trim_end().split(':').map(str::to_owned).collect();
            change(&mut fields);
            fields.join(":") + "\n"
        })
        .collect();
    if edited == text { Ok(()) } else { root.write(file, &edited, 0o644) }
}

fn append_if_there(root: &Root, file: &str, line: &str) -> io::Result<()> {
    let Some(text) = root.read(file)? else { return Ok(()) };
    let name = line.split(':').next().unwrap_or_default();
    if line_of(&text, name).is_some() {
        return Ok(());
    }
    root.write(file, &(line_end(text) + line), 0o640)
}

fn is_of(line: &str, name: &str) -> bool {
    line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
}

fn line_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find(|line| is_of(line, name))
}

/// The field at `index`, a number.
fn number(line: &str, index: usize) -> Option<u32> {
    line.trim_end().split(':').nth(index)?.parse().ok()
}

/// The ids in an account file: of users and of groups they are in the same place.
fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.lines().filter_map(|line| number(line, 2))
}

fn ids(line: &str) -> Option<(u32, u32, &str)> {
    Some((number(line, 2)?, number(line, 3)?, line.split(':').nth(5)?))
}
