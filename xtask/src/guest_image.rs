//! The demo's guest, ready to boot: a static `gnomon-guest` and the modules it loads, packed as an initramfs.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    initramfs::Archive,
    kernel::{self, Kernel},
    sh,
};

/// The only target that rustup installs by itself; its C library links statically as well.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Everything QEMU needs to boot the guest.
#[derive(Debug)]
pub struct GuestImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial ram disk.
    pub initrd: PathBuf,
    /// The same program on the host: fills and verifies disks.
    pub program: PathBuf,
}

/// Builds the guest and packs it. Quick when nothing has changed.
pub fn build() -> Result<GuestImage> {
    let program = build_program()?;
    let kernel = kernel::ensure()?;
    let initrd = sh::cache().join("guest.cpio");
    fs::write(&initrd, pack(&program, &kernel)?).with_context(|| format!("cannot write {}", initrd.display()))?;
    Ok(GuestImage { kernel: kernel.image, initrd, program })
}

/// In a target folder of its own: other flags would make cargo rebuild the whole house each time.
fn build_program() -> Result<PathBuf> {
    let folder = sh::cache().join("guest-target");
    sh::run_aside(
        sh::cargo()
            .args(["build", "--release", "--quiet", "--package", "gnomon-guest", "--target", TARGET, "--target-dir"])
            .arg(&folder)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            // Thin LTO over two small crates would take longer than the guest ever saves.
            .env("CARGO_PROFILE_RELEASE_LTO", "off"),
    )?;
    Ok(folder.join(TARGET).join("release/gnomon-guest"))
}

fn pack(program: &PathBuf, kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "modules"] {
        archive.folder(folder);
    }
    let mut list = String::new();
    for (name, bytes) in kernel::modules(kernel)? {
        archive.file(&format!("modules/{name}.ko"), &bytes);
        list.push_str(&format!("/modules/{name}.ko\n"));
    }
    archive.file("modules.list", list.as_bytes());
    archive.file("init", &fs::read(program).with_context(|| format!("cannot read {}", program.display()))?);
    Ok(archive.finish())
}
