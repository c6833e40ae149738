//! Builds the gateway that the daemon carries, and puts it where `src/gateway.rs` includes it.
//!
//! A nested `cargo build` with the gateway's own profile, in a target folder of its own that every build in the same
//! outer one shares, so that it is built once and found afterwards. `PAPERCLIP_BRIDGE_GATEWAY` at build time names a
//! finished file instead, or `none`. Targets without a static C library here carry none.
#![expect(
    clippy::disallowed_methods,
    reason = "a build script is told everything through its environment"
)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// Where a static gateway can be linked with what an ordinary toolchain brings.
const SUPPORTED: [&str; 1] = ["x86_64-unknown-linux-gnu"];
const PACKAGE: &str = "paperclip-bridge-gateway";
/// Names a finished gateway, or `none`.
const GIVEN: &str = "PAPERCLIP_BRIDGE_GATEWAY";

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed={GIVEN}");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let place = out.join("gateway");
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")?)
        .parent()
        .ok_or("this package has left its workspace")?
        .to_owned();
    let gateway = match env::var_os(GIVEN) {
        Some(given) if given == "none" => None,
        Some(given) => Some(given_file(&root.join(given))?),
        None => built(&root, &out)?,
    };
    let write = |bytes: &[u8]| {
        // Left alone where it is the same already, so that nothing after it is built anew.
        if fs::read(&place).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        fs::write(&place, bytes)
    };
    write(gateway.as_deref().unwrap_or_default())
        .map_err(|error| format!("cannot write into the build's output folder: {error}"))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("cargo has not set {name}: {error}"))
}

fn given_file(path: &Path) -> Result<Vec<u8>, String> {
    println!("cargo::rerun-if-changed={}", path.display());
    read_elf(path).map_err(|error| format!("the gateway that {GIVEN} names cannot be used: {error}"))
}

fn read_elf(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    if bytes.starts_with(b"\x7fELF") {
        Ok(bytes)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it is no ELF program"))
    }
}

fn built(root: &Path, out: &Path) -> Result<Option<Vec<u8>>, String> {
    for source in ["Cargo.toml", "Cargo.lock", "tunnel/gateway", "tunnel/wire"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let target = variable("TARGET")?;
    if !SUPPORTED.contains(&target.as_str()) {
        return Ok(None);
    }
    let folder = shared_folder(out);
    let status = nested(root, &target, &folder)?
        .status()
        .map_err(|error| format!("cannot start cargo for the gateway: {error}"))?;
    if !status.success() {
        return Err(format!(
            "the gateway could not be built ({status}); a static C library is needed for it (libc6-dev on Debian, \
             glibc-static on Fedora); {GIVEN}=FILE takes a finished one, {GIVEN}=none goes without"
        ));
    }
    let program = folder.join(&target).join("gateway").join(PACKAGE);
    read_elf(&program)
        .map(Some)
        .map_err(|error| format!("the gateway was built but cannot be read: {error}"))
}

/// Beside the profiles of the outer build, whose folder carries cargo's mark.
fn shared_folder(out: &Path) -> PathBuf {
    out.ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file())
        .unwrap_or(out)
        .join("embedded")
}

fn nested(root: &Path, target: &str, folder: &Path) -> Result<Command, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--package", PACKAGE])
        .args(["--profile", "gateway", "--target", target])
        .arg("--target-dir")
        .arg(folder);
    for (name, _) in env::vars_os() {
        if outer(&name) {
            command.env_remove(name);
        }
    }
    // Set to nothing they also outdo a wrapper from a configuration file.
    command
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "");
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    // Where this machine keeps its sources is nobody's business in a sandbox, and two machines build the same bytes.
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    for (from, to) in [(Some(root.to_owned()), "."), (home, "cargo")] {
        if let Some(from) = from.as_deref().and_then(Path::to_str) {
            flags.push(format!("--remap-path-prefix={from}={to}"));
        }
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    Ok(command)
}

/// Whether a variable speaks of the outer build and would change or break the inner one.
fn outer(name: &OsString) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let exact = [
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "CARGO_INCREMENTAL",
        "CARGO_TARGET_DIR",
        "CARGO_PRIMARY_PACKAGE",
        "OUT_DIR",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
    ];
    let beginnings = [
        "CARGO_BUILD_",
        "CARGO_PROFILE_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_ENCODED_",
        "CARGO_LLVM_COV",
        "LLVM_PROFILE_",
    ];
    exact.contains(&name)
        || beginnings.iter().any(|beginning| name.starts_with(beginning))
        || (name.starts_with("CARGO_TARGET_") && name.ends_with("_RUSTFLAGS"))
}
