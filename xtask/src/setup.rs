//! The Debian packages that tests, demo and benchmarks use: what is missing is installed, and said.
//!
//! Only a Debian host and root can do it; anybody else is told what is needed (exit code 3). A user's apt sources are
//! never changed.

use std::{
    fmt, fs,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{Ended, agent_image, newer_qemu, sh};

/// A package, and why we need it.
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "the hypervisor under test"),
    ("qemu-utils", "qemu-img to import images, qemu-io and qemu-nbd as peers"),
    ("nbdkit", "an NBD server to be compared with, and a primary that can be slow or fail"),
    ("libnbd-bin", "nbdinfo and nbdcopy: NBD clients that are not ours"),
    ("python3-libnbd", "an NBD client whose single requests a test can shape"),
    ("fio", "load for the benchmarks"),
    ("busybox-static", "a small guest for tests of the machine plane"),
    ("cpio", "packs that guest"),
    ("e2fsprogs", "mkfs.ext4, for the disk of a guest with PostgreSQL"),
    ("iproute2", "networks of hosts and cards in tests: namespaces, bridges and taps"),
    ("haproxy", "a load balancer that sends connections to where a VM is"),
    ("etcd-server", "the store that several hosts see: tests run three members on loopback"),
    ("protobuf-compiler", "protoc, for the build of etcd's client (feature `etcd`)"),
    ("libprotobuf-dev", "protoc's own definitions, which etcd's use"),
];

/// The machine cannot do it, and here is what would be needed; exit code 3.
#[derive(Debug)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// `cargo xtask setup`
pub fn run() -> Ended {
    ensure()?;
    newer_qemu::ensure()?;
    agent_image::build()?;
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing. Quick when nothing is.
pub fn ensure() -> Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().map(|(name, _)| *name).filter(|name| installed(name).is_none()).collect();
    if missing.is_empty() {
        eprintln!("setup: all {} packages are installed", PACKAGES.len());
        return Ok(());
    }
    for (name, reason) in PACKAGES.iter().filter(|(name, _)| missing.contains(name)) {
        eprintln!("setup: {name} is missing: {reason}");
    }
    refuse_unless_able(&missing)?;
    sh::run_aside(apt().args(["update", "-q"]))?;
    let emulator = candidate("qemu-system-x86");
    let requests = requests(&missing, emulator.as_deref(), installed("qemu-utils").as_deref());
    eprintln!("setup: installing {}", requests.join(" "));
    sh::run_aside(
        apt().args(["install", "-q", "-y", "--no-install-recommends", "--allow-downgrades"]).args(&requests),
    )
}

/// What to ask apt for.
///
/// A machine may carry qemu-utils from backports and no emulator. They break an older qemu-system-common, so apt would
/// remove them for the stable emulator's sake, and tests would miss qemu-img; so both are asked for in the emulator's
/// version. Only then: a newer qemu-utils that matches its emulator is left alone.
fn requests(missing: &[&str], emulator: Option<&str>, utils: Option<&str>) -> Vec<String> {
    let mut requests: Vec<String> = missing.iter().map(|name| (*name).to_owned()).collect();
    if let (true, Some(wanted), Some(present)) = (missing.contains(&"qemu-system-x86"), emulator, utils)
        && wanted != present
    {
        requests.push(format!("qemu-utils={wanted}"));
    }
    requests
}

fn refuse_unless_able(missing: &[&str]) -> Result<()> {
    let debian = fs::read_to_string("/etc/os-release").is_ok_and(|text| is_debian(&text));
    let root = is_root()?;
    let needed = missing.join(" ");
    match (debian, root) {
        (true, true) => Ok(()),
        (true, false) => {
            Err(Refusal(format!("not root. Run once: sudo apt-get install --no-install-recommends {needed}")).into())
        }
        (false, _) => Err(Refusal(format!(
            "this is not Debian or one of its kind. Install what your distribution calls these: {needed}"
        ))
        .into()),
    }
}

/// What only root may do is said, and that it is why.
pub fn refuse_unless_root(purpose: &str) -> Result<()> {
    match is_root()? {
        true => Ok(()),
        false => Err(Refusal(format!("this has to be run as root, {purpose}")).into()),
    }
}

fn is_root() -> Result<bool> {
    Ok(sh::capture(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Debian, or a distribution that says it is like it.
fn is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .any(|value| value.trim_matches('"').split_whitespace().any(|word| word == "debian"))
}

/// The installed version of a package.
fn installed(name: &str) -> Option<String> {
    let format = "${db:Status-Status} ${Version}";
    let answer = sh::capture(Command::new("dpkg-query").args(["-W", "-f", format, name])).ok()?;
    answer.strip_prefix("installed ").map(|version| version.trim().to_owned())
}

/// The version that apt would install.
fn candidate(name: &str) -> Option<String> {
    parse_candidate(&sh::capture(apt_cache().args(["policy", name])).ok()?)
}

fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

fn apt_cache() -> Command {
    let mut command = Command::new("apt-cache");
    command.env("LC_ALL", "C");
    command
}

/// apt-get that asks nobody anything: CI has no keyboard.
pub fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utils_are_pinned_only_when_the_emulator_is_missing_and_differs() {
        // (missing, emulator's candidate, utils present) → asked for
        type Row = (&'static [&'static str], Option<&'static str>, Option<&'static str>, &'static [&'static str]);
        let table: &[Row] = &[
            (&["qemu-system-x86", "fio"], Some("7.2"), Some("10.0"), &["qemu-system-x86", "fio", "qemu-utils=7.2"]),
            (&["qemu-system-x86"], Some("7.2"), Some("7.2"), &["qemu-system-x86"]),
            (&["qemu-system-x86", "qemu-utils"], Some("7.2"), None, &["qemu-system-x86", "qemu-utils"]),
            (&["fio"], Some("7.2"), Some("10.0"), &["fio"]),
            (&["qemu-system-x86"], None, Some("10.0"), &["qemu-system-x86"]),
        ];
        for (missing, emulator, utils, expected) in table {
            assert_eq!(requests(missing, *emulator, *utils), *expected, "{missing:?} {emulator:?} {utils:?}");
        }
    }

    #[test]
    fn debian_and_its_kind() {
        assert!(is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian("ID=fedora\nHOME_URL=\"debian\"\n"));
    }

    #[test]
    fn policy_tells_the_candidate() {
        assert_eq!(parse_candidate("fio:\n  Installed: (none)\n  Candidate: 3.33-3\n"), Some("3.33-3".to_owned()));
        assert_eq!(parse_candidate("fio:\n  Installed: (none)\n  Candidate: (none)\n"), None);
    }
}
