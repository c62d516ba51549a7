//! The second act: another QEMU under the running guest, and an update that is not good enough for it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::guest::{RETRY, Stream, listen};
use crate::sh;

/// Asks the copy for a report of its work, and is content when nothing in it is wrong.
const PROBE: &str = r#"python3 -c '
import json, os, socket, sys
port = socket.socket(socket.AF_UNIX)
port.settimeout(30)
port.connect(os.environ["GNOMON_PORT_GNOMON_REPORT"])
for line in port.makefile():
    try: report = json.loads(line)
    except ValueError: continue
    if report.get("kind") == "report": sys.exit(report["corrupt"] + report["errors"])
'"#;

/// How long the copy, and then the guest, is watched.
const OBSERVE: &str = "3";

/// What the second act told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// The guest's silence when it changed its QEMU, milliseconds.
    pub gap_ms: f64,
    /// Heartbeats that never arrived.
    pub heartbeats_lost: u64,
    /// Whether the bad update was refused.
    pub bad_refused: bool,
    /// The guest's longest silence while the bad update was tried on its copy, milliseconds.
    pub bad_gap_ms: f64,
}

/// The words of a good update.
pub fn good<'a>(vm: &'a str, qemu: &'a str) -> Vec<&'a str> {
    vec!["vm", "update", vm, "--qemu", qemu, "--probe", PROBE, "--observe", OBSERVE]
}

/// The words of a bad one: without a probe, so that watching has to find it.
pub fn bad<'a>(vm: &'a str, qemu: &'a str) -> Vec<&'a str> {
    vec!["vm", "update", vm, "--qemu", qemu, "--observe", "15"]
}

/// A QEMU that runs a guest well for two seconds and then crashes.
pub fn bad_qemu(folder: &Path, newer: &Path) -> Result<PathBuf> {
    let path = folder.join("bad-qemu");
    let qemu = newer.join("usr/bin/qemu-system-x86_64");
    let share = newer.join("usr/share");
    fs::write(
        &path,
        format!(
            "#!/bin/sh\n\
             # Only with a guest: being asked for its version and machines it answers.\n\
             case \"$*\" in *memory-backend*) (sleep 2; kill -SEGV $$) & ;; esac\n\
             exec {0} -L {1}/qemu -L {1}/seabios \"$@\"\n",
            sh_quoted(&qemu),
            sh_quoted(&share)
        ),
    )?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn sh_quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Runs `gnomon WORDS` at a node; says by which code it ended.
pub fn exit_code(run_dir: &Path, words: &[&str]) -> Result<i32> {
    let mut command = std::process::Command::new(sh::target().join("release/gnomon"));
    let status =
        command.arg("--socket").arg(run_dir.join("gnomon.sock")).args(words).stdout(std::process::Stdio::null());
    status.status()?.code().context("gnomon was killed")
}

/// Listens to a port of every second QEMU of a VM, from the moment it appears: which of them will be the guest's own is
/// known only afterwards.
pub struct Lanes {
    heard: Arc<Mutex<BTreeMap<PathBuf, Stream>>>,
    over: Arc<AtomicBool>,
}

impl Lanes {
    /// Begins to look below the folder of a VM.
    pub fn watch(folder: PathBuf, port: &'static str, began: Instant) -> Lanes {
        let lanes = Lanes { heard: Arc::default(), over: Arc::default() };
        let (heard, over) = (Arc::clone(&lanes.heard), Arc::clone(&lanes.over));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                    let socket = entry.path().join(format!("{port}.sock"));
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    if socket.exists() && !heard.contains_key(&socket) {
                        heard.insert(socket.clone(), listen(socket, began));
                    }
                }
                thread::sleep(RETRY);
            }
        });
        lanes
    }

    /// What came from this socket.
    pub fn stream(&self, socket: &Path) -> Option<Stream> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(socket).cloned()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
