//! A newer QEMU beside the installed one: Debian's backports, unpacked into the cache. Nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    debian::{Archive, PrivateApt},
    setup::Refusal,
    sh,
};

/// The variable by which tests and demo are told where it is.
pub const VARIABLE: &str = "GNOMON_NEWER_QEMU";

/// What is unpacked, with whatever it needs beyond what is installed.
const PACKAGE: &str = "qemu-system-x86";

/// Fetches and unpacks it, unless the cache has it or the variable names one; returns its root.
pub fn ensure() -> Result<PathBuf> {
    if let Some(root) = std::env::var_os(VARIABLE) {
        return Ok(root.into());
    }
    let folder = sh::cache().join("newer-qemu");
    if !program(&folder).exists() {
        fetch(&folder)?;
    }
    Ok(folder)
}

fn program(root: &Path) -> PathBuf {
    root.join("usr/bin/qemu-system-x86_64")
}

/// Downloads and unpacks into `folder`. The rename is last, so that half of it is never taken for the whole.
fn fetch(folder: &Path) -> Result<()> {
    let archive = archive()?;
    let part = sh::cache().join("newer-qemu.part");
    let _ = fs::remove_dir_all(&part);
    let (root, backports) = (part.join("root"), format!("{}-backports", archive.suite));
    let apt = PrivateApt::beside_host(&part.join("apt"), &archive, &[&archive.suite, &backports])?;
    eprintln!("newer QEMU: fetching {PACKAGE} of {backports} (15 MB, kept in {})", folder.display());
    apt.unpack(&backports, &[PACKAGE], &root)?;
    refuse_unless_it_runs(&root)?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&root, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _ = fs::remove_dir_all(&part);
    Ok(())
}

fn archive() -> Result<Archive> {
    Archive::of_host().ok_or_else(|| {
        let needed = format!("a newer QEMU is in Debian's backports only: unpack one and set {VARIABLE} to its root");
        Refusal(needed).into()
    })
}

/// It runs on the host's libraries: a release that is too old for it says which it lacks.
fn refuse_unless_it_runs(root: &Path) -> Result<()> {
    let version = sh::capture(Command::new(program(root)).arg("--version"));
    version.map(drop).map_err(|why| {
        let wanted =
            format!("the newer QEMU does not run on this host ({why}): set {VARIABLE} to the root of one that does");
        Refusal(wanted).into()
    })
}
