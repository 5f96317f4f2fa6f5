//! Writes each block of Rust in the README to a file, so that a test can have it as a module and run it.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=README.md");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    let readme = fs::read_to_string("README.md")?;
    let starts = readme.split("```rust\n").skip(1);
    for (number, start) in (1..).zip(starts) {
        let block = start.split("```").next().unwrap_or_default();
        fs::write(out.join(format!("block_{number}.rs")), block)?;
    }
    Ok(())
}
