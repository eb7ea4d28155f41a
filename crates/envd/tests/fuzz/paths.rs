//! Paths, against a second implementation of the contract's words.

use std::os::unix::ffi::OsStrExt;

use atoll_envd::{
    paths::{base_name, resolve},
    users::User,
};
use proptest::prelude::*;

use super::runner;

const HOME: &str = "/home/user";

fn user() -> User {
    User {
        name: "user".into(),
        uid: 1000,
        gid: 1000,
        home: HOME.into(),
        shell: "/bin/bash".into(),
        groups: vec![1000],
    }
}

/// What a path means; none when it means nothing.
fn model(path: &str, workdir: Option<&str>) -> Option<String> {
    let path = if path.is_empty() { workdir.unwrap_or("") } else { path };
    if path.contains('\0') {
        return None;
    }
    if path.starts_with('/') {
        return Some(path.to_owned());
    }
    let below_home = match path.as_bytes() {
        [b'~'] => "",
        [b'~', b'/', ..] => &path[2..],
        [b'~', ..] => return None,
        _ => path,
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in HOME.split('/').chain(below_home.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

fn path() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "/", "//", ".", "..", "~", "a", "b c", "\u{e9}", "\u{0}", "\\", "%2e", "...", " ", "\n",
    ]);
    let built = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
    prop_oneof![3 => built, 1 => any::<String>()]
}

// Rules: PATH-1, PATH-2, PATH-3, PATH-4, PATH-5
#[test]
fn every_path_resolves_as_the_contract_says() {
    let inputs = (path(), prop::option::of(path()));
    runner(512, "tests/fuzz/corpus/paths.txt")
        .run(&inputs, |(path, workdir)| {
            let resolved = resolve(&path, &user(), workdir.as_deref()).ok();
            let bytes = resolved.as_ref().map(|path| path.as_os_str().as_bytes().to_vec());
            prop_assert_eq!(bytes, model(&path, workdir.as_deref()).map(String::into_bytes));
            let name = base_name(&path);
            prop_assert!(name == "/" || !name.contains('/'));
            prop_assert!(path.is_empty() == name.is_empty() && path.contains(name));
            Ok(())
        })
        .unwrap();
}
