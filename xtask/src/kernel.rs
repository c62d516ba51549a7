//! A guest kernel: Debian's cloud kernel, unpacked into the cache. Nothing is installed on the host.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{setup, sh};

/// The package that always names the newest cloud kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// The compressed image that QEMU boots.
    pub image: PathBuf,
    /// The folder with its modules.
    pub modules: PathBuf,
}

/// Fetches the kernel, unless the cache has one.
pub fn ensure() -> Result<Kernel> {
    let folder = sh::cache().join("kernel");
    if let Ok(kernel) = find(&folder) {
        return Ok(kernel);
    }
    // Package lists may be missing or older than the archive: then they are fetched once, and it is tried again.
    fetch(&folder).or_else(|_| {
        sh::run_aside(setup::apt().args(["update", "-q"]))?;
        fetch(&folder)
    })?;
    find(&folder)
}

/// Downloads and unpacks into `folder`. The rename is last, so a half unpacked kernel is never taken for a whole one.
fn fetch(folder: &Path) -> Result<()> {
    let unpacking = sh::cache().join("kernel.part");
    let _ = fs::remove_dir_all(&unpacking);
    fs::create_dir_all(&unpacking).with_context(|| format!("cannot make {}", unpacking.display()))?;
    let depends = sh::capture(Command::new("apt-cache").env("LC_ALL", "C").args(["depends", META_PACKAGE]))?;
    let package = image_package(&depends).context("apt knows no cloud kernel")?;
    eprintln!("kernel: fetching {package} (27 MB, kept in {})", folder.display());
    // As root, apt would download as a user of its own, who may not write here.
    let fetching = ["-o", "APT::Sandbox::User=root", "download", "-q", &package];
    sh::run_aside(setup::apt().args(fetching).current_dir(&unpacking))?;
    let archive = with_suffix(&unpacking, ".deb")?;
    sh::run_aside(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacking))?;
    fs::remove_file(&archive)?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&unpacking, folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// The named modules, each after those it needs, which it says itself; with their bytes.
pub fn modules(kernel: &Kernel, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut loaded = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        collect(kernel, name, &mut seen, &mut loaded)?;
    }
    Ok(loaded)
}

fn collect(
    kernel: &Kernel,
    name: &str,
    seen: &mut BTreeSet<String>,
    loaded: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(path) = module_file(&kernel.modules, name)? else {
        // Built into the kernel: nothing to load.
        let built_in = fs::read_to_string(kernel.modules.join("modules.builtin")).unwrap_or_default();
        return match built_in.lines().any(|line| module_name(line) == Some(name.to_owned())) {
            true => Ok(()),
            false => bail!("kernel module {name} is nowhere in {}", kernel.modules.display()),
        };
    };
    let bytes = unpacked(&path)?;
    for needed in depends(&bytes) {
        collect(kernel, &needed, seen, loaded)?;
    }
    loaded.push((name.to_owned(), bytes));
    Ok(())
}

/// The module's bytes; newer Debian kernels compress them.
fn unpacked(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz").arg("-dc").arg(path).output().context("xz (package xz-utils) is needed")?;
        anyhow::ensure!(output.status.success(), "xz -dc {}: {}", path.display(), output.status);
        return Ok(output.stdout);
    }
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The modules that `module` says it needs: the `depends=` string of its `.modinfo` section, which the compiler ends
/// with a zero byte like all its strings.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The first of `linux-image-…-cloud-amd64` that the meta package depends on.
fn image_package(depends: &str) -> Option<String> {
    depends.lines().find_map(|line| {
        let package = line.trim().strip_prefix("Depends:")?.trim();
        package.starts_with("linux-image-").then(|| package.to_owned())
    })
}

fn find(folder: &Path) -> Result<Kernel> {
    let image = with_prefix(&folder.join("boot"), "vmlinuz-")?;
    // Debian 13 keeps modules below /usr.
    let homes = [folder.join("lib/modules"), folder.join("usr/lib/modules")];
    let modules = homes.iter().find_map(|home| with_prefix(home, "").ok()).context("the kernel has no modules")?;
    Ok(Kernel { image, modules })
}

fn module_file(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = module_file(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if module_name(&entry.path().to_string_lossy()).as_deref() == Some(name) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// `kernel/drivers/virtio-rng.ko.xz` is called `virtio_rng`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn with_prefix(folder: &Path, prefix: &str) -> Result<PathBuf> {
    entry(folder, |name| name.starts_with(prefix))
}

fn with_suffix(folder: &Path, suffix: &str) -> Result<PathBuf> {
    entry(folder, |name| name.ends_with(suffix))
}

fn entry(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut found = entries.flatten().filter(|entry| fits(&entry.file_name().to_string_lossy()));
    found.next().map(|entry| entry.path()).with_context(|| format!("nothing of the kind in {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_tells_what_it_needs() {
        assert_eq!(depends(b"ELF\0license=GPL\0depends=virtio,virtio_ring\0name=x\0"), ["virtio", "virtio_ring"]);
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }

    #[test]
    fn file_names_and_module_names() {
        assert_eq!(module_name("kernel/virtio-rng.ko"), Some("virtio_rng".to_owned()));
        assert_eq!(module_name("a/virtio_blk.ko.xz"), Some("virtio_blk".to_owned()));
        assert_eq!(module_name("modules.builtin"), None);
    }

    #[test]
    fn the_image_package_is_named_by_the_meta_package() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(image_package(text).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(image_package("linux-image-cloud-amd64\n"), None);
    }
}
