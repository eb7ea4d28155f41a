//! Generates envd's Connect services from `proto/`, without a `protoc` on the machine.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    if env::var_os("CARGO_FEATURE_RPC").is_none() {
        return Ok(());
    }
    let files = ["process.proto", "filesystem.proto"];
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(&descriptors, compiler.encode_file_descriptor_set())?;
    connectrpc_build::Config::new()
        .descriptor_set(&descriptors)
        .files(&files)
        .include_file("_services.rs")
        // It would name the descriptors, which this script writes: each build would run it again.
        .emit_rerun_directives(false)
        .compile()?;
    Ok(())
}
