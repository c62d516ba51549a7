//! The demo's guest, ready to boot: static `gnomon-guest` and `gnomon-agent`, and the modules that are loaded, packed as
//! an initramfs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    initramfs::Archive,
    kernel::{self, Kernel},
    sh,
};

/// The only target that rustup installs by itself; its C library links statically as well.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the guest needs: its disk, its serial ports, its network card, and memory that grows. (DIMMs need no module.)
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_mem"];

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
    let folder = build_programs()?;
    let (program, agent) = (folder.join("gnomon-guest"), folder.join("gnomon-agent"));
    let kernel = kernel::ensure()?;
    let initrd = sh::cache().join("guest.cpio");
    fs::write(&initrd, pack(&program, &agent, &kernel)?)
        .with_context(|| format!("cannot write {}", initrd.display()))?;
    Ok(GuestImage { kernel: kernel.image, initrd, program })
}

/// In a target folder of its own: other flags would make cargo rebuild the whole house each time.
fn build_programs() -> Result<PathBuf> {
    let folder = sh::cache().join("guest-target");
    sh::run_aside(
        sh::cargo()
            .args(["build", "--release", "--quiet", "--package", "gnomon-guest", "--package", "gnomon-agent"])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&folder)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            // Thin LTO over two small crates would take longer than the guest ever saves.
            .env("CARGO_PROFILE_RELEASE_LTO", "off"),
    )?;
    Ok(folder.join(TARGET).join("release"))
}

fn pack(program: &Path, agent: &Path, kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "modules"] {
        archive.folder(folder);
    }
    archive.modules(&kernel::modules(kernel, MODULES)?);
    for (name, file) in [("init", program), ("agent", agent)] {
        archive.file(name, &fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(archive.finish())
}
