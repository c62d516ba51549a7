//! `bench nbd`: our NBD server beside qemu-nbd and nbdkit, loaded by fio over a unix socket, on one file that is
//! wholly in the page cache: what is compared is the servers, not the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Better, Case, Row, interleave};
use crate::{setup, sh};

const FILE_SIZE: u64 = 1 << 30;

/// Long enough for a steady state after fio's start, short enough for 5 cases × 3 servers × 5 rounds in four minutes.
const SECONDS: &str = "2";

const CONTENDERS: &[&str] = &["gnomon", "qemu-nbd", "nbdkit"];

/// A case's name, unit, and what fio is told.
const CASES: &[(&str, &str, &[&str])] = &[
    ("4k randread qd1", "IOPS", &["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("4k randread qd16", "IOPS", &["--rw=randread", "--bs=4k", "--iodepth=16"]),
    ("4k randwrite qd16", "IOPS", &["--rw=randwrite", "--bs=4k", "--iodepth=16"]),
    ("1M read qd4", "MiB/s", &["--rw=read", "--bs=1M", "--iodepth=4"]),
    ("1M write qd4", "MiB/s", &["--rw=write", "--bs=1M", "--iodepth=4"]),
];

/// Runs the benchmark.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>> {
    let ours = sh::stage("build", build)?;
    let folder = std::env::temp_dir().join(format!("gnomon-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let measured = measure(&ours, &folder, rounds);
    let _ = fs::remove_dir_all(&folder);
    measured
}

fn build() -> Result<PathBuf> {
    setup::ensure()?;
    sh::run(sh::cargo().args(["build", "--release", "--quiet", "--package", "gnomon"]))?;
    Ok(sh::target().join("release/gnomon"))
}

fn measure(ours: &Path, folder: &Path, rounds: usize) -> Result<Vec<Row>> {
    let file = folder.join("disk.raw");
    sh::run(
        Command::new("dd")
            .args(["if=/dev/urandom", "bs=1M", "status=none"])
            .arg(format!("of={}", file.display()))
            .arg(format!("count={}", FILE_SIZE >> 20)),
    )?;
    // Sequential, so that a server's threads never compete with another server's; an idle server costs nothing.
    let servers: Vec<Server> =
        CONTENDERS.iter().map(|who| Server::start(who, ours, &file, folder)).collect::<Result<_>>()?;
    let cases =
        CASES.iter().map(|&(name, unit, _)| Case { name: name.to_owned(), unit, better: Better::Higher }).collect();
    interleave(cases, CONTENDERS, rounds, |case, who| {
        let (_, unit, load) = CASES.iter().find(|(name, ..)| *name == case.name).context("no such case")?;
        fio(&servers[who], load, *unit == "IOPS")
    })
}

/// A server that ends with its handle.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn start(who: &str, ours: &Path, file: &Path, folder: &Path) -> Result<Server> {
        let socket = folder.join(format!("{who}.sock"));
        let mut command = Command::new(if who == "gnomon" { ours } else { Path::new(who) });
        match who {
            "gnomon" => command.args(["volume", "serve-file", "--file"]).arg(file).arg("--socket").arg(&socket),
            "qemu-nbd" => {
                command.arg("-k").arg(&socket).args(["-f", "raw", "-t", "-e", "8", "--cache=writeback"]).arg(file)
            }
            _ => command.arg("-f").arg("-U").arg(&socket).arg("file").arg(file),
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut server = Server { child: child.with_context(|| format!("cannot start {who}"))?, socket };
        server.await_socket(who)?;
        Ok(server)
    }

    fn await_socket(&mut self, who: &str) -> Result<()> {
        let started = Instant::now();
        while !self.socket.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{who} ended at once: {status}");
            }
            anyhow::ensure!(started.elapsed() < Duration::from_secs(10), "{who} makes no socket");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fio(server: &Server, load: &[&str], operations: bool) -> Result<f64> {
    let uri = format!("--uri=nbd+unix:///?socket={}", server.socket.display());
    let fixed =
        ["--name=b", "--ioengine=nbd", "--time_based", "--ramp_time=0.3", "--output-format=json", "--runtime"];
    let told = sh::capture(
        Command::new("fio").args(fixed).arg(SECONDS).arg(format!("--size={FILE_SIZE}")).arg(uri).args(load),
    )?;
    parse(&told, operations).context("fio's answer is not understood")
}

/// IOPS, or MiB/s, of reads and writes together. fio may print a note before its JSON.
fn parse(told: &str, operations: bool) -> Option<f64> {
    let json: Value = serde_json::from_str(&told[told.find('{')?..]).ok()?;
    let job = json["jobs"].get(0)?;
    let (key, scale) = if operations { ("iops", 1.0) } else { ("bw_bytes", 1048576.0) };
    Some((job["read"][key].as_f64()? + job["write"][key].as_f64()?) / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fios_answer() {
        let told = r#"note: something
            {"jobs":[{"read":{"iops":100.5,"bw_bytes":2097152},"write":{"iops":0.0,"bw_bytes":0}}]}"#;
        assert_eq!((parse(told, true), parse(told, false)), (Some(100.5), Some(2.0)));
        assert_eq!(parse("fio: failed", true), None);
    }
}
