//! Migrations are embedded by a macro that cannot see a new file: the build watches for one.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
