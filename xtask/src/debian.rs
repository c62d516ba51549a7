//! Debian's packages without installing them: an apt with lists, caches and sources of its own, on the mirror that the
//! host uses. The host's apt is not touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{setup, sh};

/// Where the keys of Debian's archive are when the host's sources do not say.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What the host itself has installed.
const OF_THE_HOST: &str = "/var/lib/dpkg/status";

/// Where the host gets Debian from.
#[derive(Debug, PartialEq, Eq)]
pub struct Archive {
    /// The address of the mirror.
    pub mirror: String,
    /// The release that runs, by its code name.
    pub suite: String,
}

impl Archive {
    /// The mirror and release of the host's own sources: what `apt-get update` would fetch. Asked so, it fetches nothing
    /// and needs neither root nor lists. `None` on a host that is not Debian.
    pub fn of_host() -> Option<Archive> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let addresses = sh::capture(setup::apt().args(["update", "--print-uris"])).unwrap_or_default();
        parse_archive(&release, &addresses)
    }
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
    status: PathBuf,
}

impl PrivateApt {
    /// One that knows what the host has installed, so that it fetches only what is missing there.
    pub fn beside_host(folder: &Path, archive: &Archive, suites: &[&str]) -> Result<PrivateApt> {
        PrivateApt::new(folder, archive, suites, PathBuf::from(OF_THE_HOST))
    }

    /// One for a system of its own, on which nothing is installed but, by its word, the packages `without`: so that
    /// nothing is fetched for their sake.
    pub fn from_nothing(folder: &Path, archive: &Archive, suites: &[&str], without: &[&str]) -> Result<PrivateApt> {
        let status = folder.join("status");
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(&status, without.iter().map(|name| stanza(name)).collect::<String>())?;
        PrivateApt::new(folder, archive, suites, status)
    }

    fn new(folder: &Path, archive: &Archive, suites: &[&str], status: PathBuf) -> Result<PrivateApt> {
        for name in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let keys = if Path::new(KEYRING).exists() { format!(" [signed-by={KEYRING}]") } else { String::new() };
        let line = |suite: &&str| format!("deb{keys} {} {suite} main\n", archive.mirror);
        fs::write(folder.join("sources.list"), suites.iter().map(line).collect::<String>())?;
        Ok(PrivateApt { folder: folder.to_owned(), status })
    }

    /// Fetches packages of a suite with what they need, and unpacks all of it into `root`.
    pub fn unpack(&self, suite: &str, packages: &[&str], root: &Path) -> Result<()> {
        sh::run_aside(self.get().args(["update", "-q"]))?;
        let fetching = ["install", "-q", "-y", "--download-only", "--no-install-recommends", "--target-release"];
        sh::run_aside(self.get().args(fetching).arg(suite).args(packages))?;
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        for package in self.downloaded()? {
            sh::run_aside(Command::new("dpkg").arg("-x").arg(&package).arg(root))?;
        }
        Ok(())
    }

    /// `apt-get`, with everything that it writes, and what it reads of the host's sources, in the folder.
    fn get(&self) -> Command {
        let mut command = setup::apt();
        let of_ours = [("Dir::State", "state"), ("Dir::Cache", "cache"), ("Dir::Etc::sourcelist", "sources.list")];
        for (option, name) in of_ours {
            command.arg("-o").arg(format!("{option}={}", self.folder.join(name).display()));
        }
        for option in ["sourceparts", "preferences", "preferencesparts"] {
            command.arg("-o").arg(format!("Dir::Etc::{option}=/dev/null"));
        }
        command.arg("-o").arg(format!("Dir::State::status={}", self.status.display()));
        // As root, apt would download as a user of its own, who may not write here. The lock is the host's, and nothing
        // of the host's is written.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"]);
        command
    }

    fn downloaded(&self) -> Result<Vec<PathBuf>> {
        let archives = self.folder.join("cache/archives");
        let entries = fs::read_dir(&archives).with_context(|| format!("cannot list {}", archives.display()))?;
        let paths = entries.flatten().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
    }
}

/// What dpkg would note of an installed package, newer than anybody can ask for.
fn stanza(package: &str) -> String {
    format!(
        "Package: {package}\nStatus: install ok installed\nVersion: 999:1\nArchitecture: amd64\nMulti-Arch: foreign\n\n"
    )
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
    fn other_systems_have_no_packages_of_debian() {
        let line = "'http://m/debian/dists/noble/main/binary-amd64/Packages.xz' m 0";
        assert_eq!(parse_archive("ID=ubuntu\nVERSION_CODENAME=noble\n", line), None);
        assert_eq!(parse_archive("", ""), None);
    }
}
