//! The sandbox's accounts, read from `/etc/passwd` and `/etc/group`.
//!
//! The files are parsed here because envd is a static binary: the C library's lookups would load
//! NSS modules from the guest's image, and crash. They are read anew for every question, since a
//! command may add a user at any time. A malformed line is skipped, like a comment.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// More than this of an account file is not read: the guest's root writes it, envd holds it.
const MAX_ACCOUNT_FILE: u64 = 8 << 20;

/// An account of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Home directory; `/` when the account has none.
    pub home: PathBuf,
    /// Login shell; `/bin/sh` when the account has none.
    pub shell: PathBuf,
    /// Every group of the account, the primary one first.
    pub groups: Vec<u32>,
}

/// Finds an account by its login name. Numeric ids are not names.
///
/// `root` exists even in an image without `/etc/passwd`.
///
/// # Errors
/// When an account file exists but cannot be read.
pub fn lookup(name: &str) -> io::Result<Option<User>> {
    Ok(find(&read(PASSWD)?, &read(GROUP)?, name))
}

/// Names of user and group ids, for showing owners. A snapshot: load one for each request.
#[derive(Debug, Default)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads the account files. One that cannot be read gives no names.
    pub fn load() -> Self {
        let text = |path| read(path).unwrap_or_default();
        Self::parse(&text(PASSWD), &text(GROUP))
    }

    fn parse(passwd: &str, group: &str) -> Self {
        let mut names = Self::default();
        for user in passwd.lines().filter_map(parse_user) {
            names.users.entry(user.uid).or_insert(user.name);
        }
        for group in group.lines().filter_map(parse_group) {
            names.groups.entry(group.gid).or_insert_with(|| group.name.to_owned());
        }
        names
    }

    /// The name of a user id, or the number in decimal.
    pub fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// The id of a group.
    pub fn group_id(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|(_, known)| *known == name).map(|(id, _)| *id)
    }

    /// The name of a group id, or the number in decimal.
    pub fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

/// Reads an account file; a missing one is empty. Bytes that are not UTF-8 are replaced, which
/// spoils only the line they are on.
fn read(path: &str) -> io::Result<String> {
    // Not to be held up by a fifo that the guest's root put there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::open(Path::new(path), flags, Mode::empty()) {
        Ok(fd) => std::fs::File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_ACCOUNT_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn find(passwd: &str, group: &str, name: &str) -> Option<User> {
    let mut user = passwd
        .lines()
        .filter_map(parse_user)
        .find(|user| user.name == name)
        .or_else(|| (name == "root").then(built_in_root))?;
    for entry in group.lines().filter_map(parse_group) {
        if entry.members.split(',').any(|member| member == name)
            && !user.groups.contains(&entry.gid)
        {
            user.groups.push(entry.gid);
        }
    }
    Some(user)
}

fn built_in_root() -> User {
    User {
        name: "root".to_owned(),
        uid: 0,
        gid: 0,
        home: PathBuf::from("/root"),
        shell: PathBuf::from("/bin/sh"),
        groups: vec![0],
    }
}

fn parse_user(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[name, _password, uid, gid, _gecos, home, shell] = fields.as_slice() else {
        return None;
    };
    let (uid, gid) = (parse_id(uid)?, parse_id(gid)?);
    Some(User {
        name: parse_name(name)?.to_owned(),
        uid,
        gid,
        // A relative home would resolve against envd's own directory.
        home: PathBuf::from(if home.starts_with('/') { home } else { "/" }),
        shell: PathBuf::from(if shell.is_empty() { "/bin/sh" } else { shell }),
        groups: vec![gid],
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn parse_group(line: &str) -> Option<Group<'_>> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[name, _password, gid, members] = fields.as_slice() else { return None };
    Some(Group { name: parse_name(name)?, gid: parse_id(gid)?, members })
}

/// `+` and `-` start the inclusions of an old directory service, `#` what people take for a
/// comment.
fn parse_name(name: &str) -> Option<&str> {
    (!name.is_empty() && !name.starts_with(['+', '-', '#'])).then_some(name)
}

/// A decimal id. The highest value means "no id" to the kernel's calls.
fn parse_id(id: &str) -> Option<u32> {
    let digits = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| id.parse().ok())?.filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/bash
# user:x:7:7::/nowhere:/bin/sh
user:x:notanumber:1000::/home/user:/bin/bash
user:x:1000
+user::::::
user:x:1000:1001:,,,:/home/user:/bin/zsh
user:x:2000:2000::/home/second:/bin/sh
bare:x:1002:1002:::
max:x:4294967295:5::/:/bin/sh
1000:x:33:33::/srv:/bin/sh
";
    const GROUP: &str = "\
root:x:0:
sudo:x:27:user,other
users:x:1001:user
broken:27:user
docker:x:998:other,user
docker:x:998:user
";

    #[test]
    fn the_first_well_formed_line_counts() {
        let user = find(PASSWD, GROUP, "user").unwrap();
        assert_eq!((user.uid, user.gid), (1000, 1001));
        assert_eq!(user.home, Path::new("/home/user"));
        assert_eq!(user.shell, Path::new("/bin/zsh"));
        assert_eq!(user.groups, [1001, 27, 998]);
    }

    #[test]
    fn an_account_without_home_or_shell_gets_usable_ones() {
        let user = find(PASSWD, GROUP, "bare").unwrap();
        assert_eq!(user.home, Path::new("/"));
        assert_eq!(user.shell, Path::new("/bin/sh"));
    }

    // Rules: USER-7, TRAP-40
    #[test]
    fn an_id_is_not_a_name() {
        assert_eq!(find(PASSWD, GROUP, "0"), None);
        assert_eq!(find(PASSWD, GROUP, "1000").unwrap().uid, 33, "only as a name of its own");
        assert_eq!(find(PASSWD, GROUP, ""), None);
        assert_eq!(find(PASSWD, GROUP, "max"), None);
        assert_eq!(find(PASSWD, GROUP, "USER"), None);
    }

    #[test]
    fn root_needs_no_file() {
        let root = find("", "", "root").unwrap();
        assert_eq!((root.uid, root.home.as_path()), (0, Path::new("/root")));
        assert_eq!(find("", "", "user"), None);
    }

    #[test]
    fn an_unknown_id_shows_as_a_number() {
        let names = Names::parse(PASSWD, GROUP);
        assert_eq!(names.user(1000), "user");
        assert_eq!(names.user(4242), "4242");
        assert_eq!(names.group(27), "sudo");
        assert_eq!(names.group(28), "28");
    }

    #[test]
    fn the_machine_has_a_root() {
        assert_eq!(lookup("root").unwrap().unwrap().uid, 0);
        assert_eq!(Names::load().user(0), "root");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(passwd in "(?s).{0,200}", group in "(?s).{0,200}", name in ".{0,8}") {
            if let Some(user) = find(&passwd, &group, &name) {
                prop_assert_eq!(user.name, name);
                prop_assert!(user.home.is_absolute());
            }
        }
    }
}
