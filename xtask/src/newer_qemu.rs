//! A newer QEMU beside the installed one: Debian's backports, unpacked into the cache. Nothing is installed, and the
//! host's apt is not touched: it has lists, caches and sources of its own here, on the mirror that the host uses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    setup::{self, Refusal},
    sh,
};

/// The variable by which tests and demo are told where it is.
pub const VARIABLE: &str = "GNOMON_NEWER_QEMU";

/// What is unpacked, with whatever it needs beyond what is installed.
const PACKAGE: &str = "qemu-system-x86";

/// Where the keys of Debian's archive are when the host's sources do not say.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    let (apt, root) = (PrivateApt::new(&part.join("apt"), &archive)?, part.join("root"));
    eprintln!("newer QEMU: fetching {PACKAGE} of {}-backports (15 MB, kept in {})", archive.suite, folder.display());
    sh::run_aside(apt.get().args(["update", "-q"]))?;
    let fetching = ["install", "-q", "-y", "--download-only", "--no-install-recommends", "--target-release"];
    sh::run_aside(apt.get().args(fetching).arg(format!("{}-backports", archive.suite)).arg(PACKAGE))?;
    fs::create_dir_all(&root)?;
    for package in apt.downloaded()? {
        sh::run_aside(Command::new("dpkg").arg("-x").arg(&package).arg(&root))?;
    }
    refuse_unless_it_runs(&root)?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&root, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _ = fs::remove_dir_all(&part);
    Ok(())
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

/// Where the host gets Debian from.
#[derive(Debug, PartialEq, Eq)]
struct Archive {
    mirror: String,
    suite: String,
}

/// The mirror and release of the host's own sources: what `apt-get update` would fetch. Asked so, it fetches nothing and
/// needs neither root nor lists.
fn archive() -> Result<Archive> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let addresses = sh::capture(setup::apt().args(["update", "--print-uris"])).unwrap_or_default();
    parse_archive(&release, &addresses).ok_or_else(|| {
        let needed = format!("a newer QEMU is in Debian's backports only: unpack one and set {VARIABLE} to its root");
        Refusal(needed).into()
    })
}

/// The site that has the main packages of the very release that runs. Others may have a release of that name; Debian's
/// mirrors end with their own.
fn parse_archive(os_release: &str, addresses: &str) -> Option<Archive> {
    let value = |key: &str| os_release.lines().find_map(|line| line.strip_prefix(key)).map(|v| v.trim_matches('"'));
    let suite = value("ID=").filter(|id| *id == "debian").and_then(|_| value("VERSION_CODENAME="))?;
    let within = format!("/dists/{suite}/main/binary-");
    let mirrors = || addresses.lines().filter_map(|line| Some(line.strip_prefix('\'')?.split_once(&within)?.0));
    let mirror = mirrors().find(|mirror| mirror.ends_with("/debian")).or_else(|| mirrors().next())?;
    Some(Archive { mirror: mirror.to_owned(), suite: suite.to_owned() })
}

/// An apt with a folder of its own.
pub struct PrivateApt {
    folder: PathBuf,
    /// The list of what is installed.
    status: PathBuf,
}

impl PrivateApt {
    /// One that takes nothing for installed: whatever is asked for comes with all that it needs.
    pub fn for_a_bare_host(folder: &Path) -> Result<PrivateApt> {
        let apt = PrivateApt::new(folder, &archive()?)?;
        let status = folder.join("status");
        fs::write(&status, "")?;
        Ok(PrivateApt { status, ..apt })
    }

    /// One that knows what the host has installed.
    fn new(folder: &Path, archive: &Archive) -> Result<PrivateApt> {
        for name in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let Archive { mirror, suite } = archive;
        let keys = if Path::new(KEYRING).exists() { format!(" [signed-by={KEYRING}]") } else { String::new() };
        let lines = [suite.clone(), format!("{suite}-backports")].map(|s| format!("deb{keys} {mirror} {s} main\n"));
        fs::write(folder.join("sources.list"), lines.concat())?;
        Ok(PrivateApt { folder: folder.to_owned(), status: "/var/lib/dpkg/status".into() })
    }

    /// `apt-get`, with everything that it writes, and what it reads of the host's sources, in the folder.
    pub fn get(&self) -> Command {
        let mut command = setup::apt();
        let of_ours = [("Dir::State", "state"), ("Dir::Cache", "cache"), ("Dir::Etc::sourcelist", "sources.list")];
        for (option, name) in of_ours {
            command.arg("-o").arg(format!("{option}={}", self.folder.join(name).display()));
        }
        for option in ["sourceparts", "preferences", "preferencesparts"] {
            command.arg("-o").arg(format!("Dir::Etc::{option}=/dev/null"));
        }
        // As root, apt would download as a user of its own, who may not write here. The lock is the host's, and nothing
        // of the host's is written.
        command.arg("-o").arg(format!("Dir::State::status={}", self.status.display()));
        let others = ["APT::Sandbox::User=root", "Debug::NoLocking=1"];
        command.args(others.iter().flat_map(|option| ["-o", option]));
        command
    }

    /// The packages that were fetched.
    pub fn downloaded(&self) -> Result<Vec<PathBuf>> {
        let archives = self.folder.join("cache/archives");
        let entries = fs::read_dir(&archives).with_context(|| format!("cannot list {}", archives.display()))?;
        let paths = entries.flatten().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";

    #[test]
    fn the_mirror_is_that_of_the_release_that_runs() {
        let lines = [
            "'http://tools/apt/dists/bookworm/main/binary-amd64/Packages.xz' tools 0",
            "'http://sec/debian-security/dists/bookworm-security/main/binary-amd64/Packages.xz' sec 0",
            "'http://mirror/debian/dists/bookworm/InRelease' mirror 0",
            "'http://mirror/debian/dists/bookworm/main/binary-amd64/Packages.xz' mirror 0",
        ];
        let found = |lines: &[&str]| parse_archive(RELEASE, &lines.join("\n")).map(|archive| archive.mirror);
        assert_eq!(found(&lines).as_deref(), Some("http://mirror/debian"));
        assert_eq!(found(&lines[..1]).as_deref(), Some("http://tools/apt"));
        assert_eq!(found(&lines[1..3]), None);
    }

    #[test]
    fn other_systems_have_no_backports_of_debian() {
        let line = "'http://m/debian/dists/noble/main/binary-amd64/Packages.xz' m 0";
        assert_eq!(parse_archive("ID=ubuntu\nVERSION_CODENAME=noble\n", line), None);
        assert_eq!(parse_archive("", ""), None);
    }
}
