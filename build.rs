//! The static binary relocates itself whenever it starts: by a packed table (RELR), which is some hundred KiB less to read,
//! and to have mapped in every role. musl reads it since 1.2.4; a linker that cannot make it says so and goes on.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
