//! A guest that runs Debian's qemu-guest-agent, as an initramfs: the agent with its libraries, and BusyBox. Debian's
//! packages are unpacked for it, not installed: an agent that is installed on a host which is a guest itself would serve
//! the hypervisor below.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    debian::{Archive, PrivateApt},
    initramfs::Archive as Initramfs,
    kernel,
    setup::Refusal,
    sh,
};

/// What the guest is made of; the C library and GLib come with it.
const PACKAGES: &[&str] = &["qemu-guest-agent", "busybox-static"];

/// What they ask for and the guest does not use: it has no other init than its own.
const WITHOUT: &[&str] = &["init-system-helpers", "lsb-base", "sysvinit-utils"];

/// Its disk and its ports.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console"];

/// Where Debian has libraries, and the program that loads them.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

const AGENT: &str = "usr/sbin/qemu-ga";
const INIT: &str = include_str!("init.sh");

/// Makes the guest, and leaves it in the cache, where tests find it beside the kernel. Quick when nothing has changed.
pub fn build() -> Result<PathBuf> {
    let kernel = kernel::ensure()?;
    let folder = sh::cache().join("agent-guest");
    let recipe = format!("{PACKAGES:?} {WITHOUT:?}");
    if !fs::read_to_string(folder.join("recipe")).is_ok_and(|made| made == recipe) {
        let part = sh::cache().join("agent-guest.part");
        let _ = fs::remove_dir_all(&part);
        fetch(&part)?;
        fs::write(part.join("recipe"), recipe)?;
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&part, &folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let initrd = folder.join("initrd.cpio");
    fs::write(&initrd, pack(&folder.join("root"), &kernel)?)
        .with_context(|| format!("cannot write {}", initrd.display()))?;
    Ok(initrd)
}

fn fetch(part: &Path) -> Result<()> {
    let wanted = || Refusal("the guest with an agent is made of Debian's packages: run this on Debian".to_owned());
    let archive = Archive::of_host().ok_or_else(wanted)?;
    eprintln!("agent: fetching {PACKAGES:?} and their libraries of {} (8 MB)", archive.suite);
    let apt = PrivateApt::from_nothing(&part.join("apt"), &archive, &[&archive.suite], WITHOUT)?;
    apt.unpack(&archive.suite, PACKAGES, &part.join("root"))?;
    fs::remove_dir_all(part.join("apt")).map_err(Into::into)
}

fn pack(root: &Path, kernel: &kernel::Kernel) -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    for name in ["bin", "dev", "lib", "lib64", "modules", "proc", "run", "sys", "tmp", "usr", "usr/sbin"] {
        archive.folder(name);
    }
    archive.modules(&kernel::modules(kernel, MODULES)?);
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    archive.file("bin/busybox", &read(&root.join("bin/busybox"))?);
    archive.file(AGENT, &read(&root.join(AGENT))?);
    archive.file(&format!("lib64/{LOADER}"), &read(&root.join(LIBRARIES[0]).join(LOADER))?);
    for library in libraries(root)? {
        let name = library.file_name().and_then(|name| name.to_str()).context("a library without a name")?;
        archive.file(&format!("lib/{name}"), &read(&library)?);
    }
    archive.file("init", INIT.as_bytes());
    Ok(archive.finish())
}

/// The libraries that the agent is loaded with, as their own loader finds them among what was unpacked.
fn libraries(root: &Path) -> Result<Vec<PathBuf>> {
    let folders = LIBRARIES.map(|folder| root.join(folder).display().to_string()).join(":");
    let mut loader = Command::new(root.join(LIBRARIES[0]).join(LOADER));
    let list = sh::capture(loader.args(["--library-path", &folders, "--list"]).arg(root.join(AGENT)))?;
    Ok(parse_list(&list))
}

/// `libz.so.1 => /root/lib/libz.so.1 (0x7f…)`: the file behind each name. What the kernel brings has none.
fn parse_list(list: &str) -> Vec<PathBuf> {
    let path = |line: &str| Some(line.split_once(" => ")?.1.split_once(" (")?.0.to_owned());
    let found = list.lines().filter_map(path).filter(|path| !path.ends_with(LOADER));
    found.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_tells_which_files_it_takes() {
        let list = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /r/lib/x86_64-linux-gnu/libc.so.6 (0x7f01)\n\
                    \t/lib64/ld-linux-x86-64.so.2 => /r/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 (0x7f02)\n";
        assert_eq!(parse_list(list), [PathBuf::from("/r/lib/x86_64-linux-gnu/libc.so.6")]);
        assert!(parse_list("").is_empty());
    }
}
