//! How a path of a request becomes a path of the sandbox.
//!
//! The user decides only where a path starts: at their home directory. No permission is checked
//! here; envd reads and writes as root.

use std::path::{Component, Path, PathBuf};

use crate::users::User;

/// Why a path cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `~somebody`.
    #[error("cannot expand user-specific home dir")]
    OtherHome,
    /// No file name holds a NUL byte.
    #[error("path contains a NUL byte")]
    Nul,
}

/// Resolves a path as a client wrote it.
///
/// - an empty one is the default working directory, or else the user's home;
/// - `~` and `~/x` start at the home, and so does a relative one; these are cleaned, that is `.`,
///   `..` and double slashes are resolved by their text alone;
/// - an absolute one is taken as it is.
///
/// # Errors
/// [`PathError`], for paths that name nothing.
pub fn resolve(
    path: &str,
    user: &User,
    default_workdir: Option<&str>,
) -> Result<PathBuf, PathError> {
    let path = match default_workdir {
        Some(workdir) if path.is_empty() => workdir,
        _ => path,
    };
    if path.contains('\0') {
        return Err(PathError::Nul);
    }
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    let relative = match path.strip_prefix('~') {
        None => path,
        Some("") => "",
        Some(rest) => rest.strip_prefix('/').ok_or(PathError::OtherHome)?,
    };
    // `~//etc` is below the home too: a join would let the second slash win.
    Ok(clean(&user.home.join(relative.trim_start_matches('/'))))
}

/// The last element of a path as it is written: `..` stays, trailing slashes go, `/` is itself.
pub fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        Some((_, name)) => name,
        None if trimmed.is_empty() && !path.is_empty() => "/",
        None => trimmed,
    }
}

/// Resolves `.`, `..` and repeated slashes of an absolute path without asking the file system.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user() -> User {
        User {
            name: "user".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/user".into(),
            shell: "/bin/bash".into(),
            groups: vec![1000],
        }
    }

    fn resolved(path: &str, workdir: Option<&str>) -> String {
        resolve(path, &user(), workdir).unwrap().into_os_string().into_string().unwrap()
    }

    // Rules: PATH-1, PATH-2, PATH-4, PATH-5
    #[test]
    fn paths_resolve_as_the_contract_says() {
        for (path, expected) in [
            ("", "/home/user"),
            ("~", "/home/user"),
            ("~/", "/home/user"),
            ("~/x/./y", "/home/user/x/y"),
            ("~//etc", "/home/user/etc"),
            ("a.txt", "/home/user/a.txt"),
            ("./a//b/", "/home/user/a/b"),
            ("../other", "/home/other"),
            ("../../../../etc", "/etc"),
            ("/", "/"),
            ("/a/../b//c/", "/a/../b//c/"),
            ("a~", "/home/user/a~"),
        ] {
            assert_eq!(resolved(path, None), expected, "{path:?}");
        }
    }

    // Rules: PATH-1, PATH-4
    #[test]
    fn only_an_empty_path_is_the_default_working_directory() {
        assert_eq!(resolved("", Some("/code")), "/code");
        assert_eq!(resolved("", Some("src")), "/home/user/src");
        assert_eq!(resolved("", Some("")), "/home/user");
        assert_eq!(resolved("a", Some("/code")), "/home/user/a");
        assert_eq!(resolved("~", Some("/code")), "/home/user");
    }

    // Rules: PATH-3
    #[test]
    fn what_names_nothing_is_refused() {
        assert_eq!(resolve("~bob", &user(), None), Err(PathError::OtherHome));
        assert_eq!(resolve("~bob/x", &user(), None), Err(PathError::OtherHome));
        assert_eq!(resolve("a\0b", &user(), None), Err(PathError::Nul));
    }

    #[test]
    fn base_names_are_taken_from_the_text() {
        for (path, expected) in
            [("/", "/"), ("//", "/"), ("/a/b", "b"), ("/a/b//", "b"), ("/a/..", ".."), ("/a", "a")]
        {
            assert_eq!(base_name(path), expected, "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn a_resolved_path_is_absolute(path in "[~./a\u{e9} ]{0,12}") {
            if let Ok(resolved) = resolve(&path, &user(), None) {
                prop_assert!(resolved.is_absolute());
            }
        }

        #[test]
        fn a_relative_path_without_dots_stays_below_home(path in "[ab/]{1,12}") {
            prop_assume!(!path.starts_with('/'));
            prop_assert!(resolve(&path, &user(), None).unwrap().starts_with("/home/user"));
        }
    }
}
