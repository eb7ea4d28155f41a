//! Builds the static programs that run beside and inside sandboxes, so that `atoll` carries them:
//! one file to copy, and never a helper of another version.
//!
//! They are built by a cargo of their own, into `target/helpers`, because they need another profile
//! (small, aborting) and a static C library.

use std::{
    env,
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Packages, their programs, and the variables that say where those are.
const HELPERS: [(&str, &str, &str); 3] = [
    ("atoll-launcher", "atoll-launcher", "LAUNCHER"),
    ("atoll-envd", "envd", "ENVD"),
    ("atoll-interpreter", "code-interpreter", "INTERPRETER"),
];
/// Crates whose change makes a helper change.
const SOURCES: [&str; 6] = ["launcher", "envd", "interpreter", "archive", "wire", "core"];

fn main() -> Result<(), Box<dyn Error>> {
    let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", workspace.join("crates").join(source).display());
    }
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.lock").display());
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.toml").display());

    let target = format!("{}-unknown-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    let directory = target_directory(&workspace)?.join("helpers");
    build(&workspace, &directory, &target)?;
    for (_, program, variable) in HELPERS {
        let binary = directory.join(&target).join("helper").join(program);
        if !binary.is_file() {
            return Err(format!("{} was not built", binary.display()).into());
        }
        println!("cargo::rustc-env=ATOLL_{variable}={}", binary.display());
    }
    write_pages(&workspace)
}

/// The error pages as a table, so that `atoll explain` needs no files.
fn write_pages(workspace: &Path) -> Result<(), Box<dyn Error>> {
    let directory = workspace.join("docs/errors");
    println!("cargo::rerun-if-changed={}", directory.display());
    let mut table = String::from("static PAGES: &[(u16, &str)] = &[\n");
    let mut pages: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    pages.sort();
    for page in pages {
        let name = page.file_stem().unwrap_or_default().to_string_lossy();
        if let Some(number) = name.strip_prefix("ATL-") {
            let number: u16 = number.parse()?;
            writeln!(table, "    ({number}, include_str!({:?})),", page.display().to_string())?;
        }
    }
    table.push_str("];\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("pages.rs"), table)?;
    Ok(())
}

/// The directory that holds this build's `debug` or `release`.
fn target_directory(workspace: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // OUT_DIR is TARGET/PROFILE/build/atoll-HASH/out.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    Ok(out.ancestors().nth(4).map_or_else(|| workspace.join("target"), Path::to_path_buf))
}

fn build(workspace: &Path, directory: &Path, target: &str) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo.current_dir(workspace).args(["build", "--locked", "--bins", "--profile", "helper"]);
    for (package, ..) in HELPERS {
        cargo.args(["--package", package]);
    }
    cargo.args(["--target", target, "--target-dir"]).arg(directory);
    // The outer build's settings are for the outer build: clippy's wrapper, coverage flags.
    for (name, _) in env::vars() {
        let inherited = ["CARGO_HOME", "CARGO_TERM_COLOR", "CARGO_NET_OFFLINE"];
        if (name.starts_with("CARGO") && !inherited.contains(&name.as_str()))
            || name.starts_with("RUSTC")
            || name.starts_with("CLIPPY")
            || name == "RUSTFLAGS"
        {
            cargo.env_remove(name);
        }
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let status = cargo.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cargo build of the helpers: {status}").into())
    }
}
