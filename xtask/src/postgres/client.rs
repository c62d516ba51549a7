//! The client's side: pgbench over connections that are made once, and what it was told.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    hosts,
    verdict::{self, Ack, Row},
};
use crate::sh;

/// How long the guest may take to boot, a client to be answered and a node to hear of another, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks at what tells nobody.
pub const RETRY: Duration = Duration::from_millis(500);

/// Longer than any run: the load is ended by [`Load::stop`].
const FOR_EVER: &str = "1000000";

/// Progress is told each second. The first word after an event may be of answers from before it; two more with answers
/// are of work that was done after it.
const WORDS: usize = 3;

const TRANSACTION: &str = include_str!("transaction.sql");

/// PostgreSQL's programs on the host: those of the guest's packages, run with the libraries of the guest's packages.
pub struct Client<'a> {
    root: &'a Path,
    folder: &'a Path,
}

impl<'a> Client<'a> {
    /// Programs of the unpacked packages in `root`; logs go to `folder`.
    pub fn new(root: &'a Path, folder: &'a Path) -> Client<'a> {
        Client { root, folder }
    }

    /// Waits until the database answers.
    pub fn await_database(&self) -> Result<()> {
        let started = Instant::now();
        while let Err(err) = self.ask("select 1") {
            ensure!(started.elapsed() < PATIENCE, "the guest's database does not answer: {err:#}");
            thread::sleep(RETRY);
        }
        Ok(())
    }

    /// Every row that a transaction of the load has left.
    pub fn rows(&self) -> Result<Vec<Row>> {
        verdict::rows(&self.ask("copy (select client, number from acknowledged) to stdout")?)
    }

    /// Whether the balances of accounts, tellers and branch are what the history says.
    pub fn is_balanced(&self) -> Result<bool> {
        let of = |table: &str, column: &str| format!("(select coalesce(sum({column}), 0) from pgbench_{table})");
        let history = of("history", "delta");
        let balances = [("accounts", "abalance"), ("tellers", "tbalance"), ("branches", "bbalance")];
        let equal = balances.map(|(table, column)| format!("{} = {history}", of(table, column)));
        let told = self.ask(&format!("select {}", equal.join(" and ")))?;
        Ok(told.trim() == "t")
    }

    /// Bytes that the guest's kernel has to manage.
    ///
    /// Source: proc_meminfo(5), `MemTotal`.
    pub fn memory_total(&self) -> Result<u64> {
        let told = self.ask("select pg_read_file('/proc/meminfo')")?;
        let kib = told.lines().find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"));
        let kib: Option<u64> = kib.and_then(|kib| kib.trim().parse().ok());
        Ok(kib.with_context(|| format!("the guest does not say what it has: {told}"))? << 10)
    }

    /// Starts the load: `clients` connections, each of which sends its next transaction when it was told of the last.
    pub fn load(&self, clients: u32) -> Result<Load> {
        let script = self.folder.join("transaction.sql");
        fs::write(&script, TRANSACTION)?;
        let told = File::create(self.folder.join("pgbench.log"))?;
        let mut pgbench = self.program("pgbench")?;
        pgbench.args(["--no-vacuum", "--jobs=1", "--progress=1", "--define=number=0", "--log", "--log-prefix=told"]);
        pgbench.arg(format!("--client={clients}")).args(["--time", FOR_EVER, "--file"]).arg(&script);
        pgbench.current_dir(self.folder).stdin(Stdio::null()).stdout(told.try_clone()?).stderr(Stdio::piped());
        let mut child = pgbench.spawn().context("cannot start pgbench")?;
        let words = child.stderr.take().context("pgbench has no words")?;
        Ok(Load { folder: self.folder.to_owned(), progress: listen(BufReader::new(words), told), child })
    }

    /// What the database answers, a line for each row.
    fn ask(&self, sql: &str) -> Result<String> {
        let mut psql = self.program("psql")?;
        sh::capture(psql.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", sql]))
    }

    fn program(&self, name: &str) -> Result<Command> {
        let versions = fs::read_dir(self.root.join("usr/lib/postgresql"))?;
        let version = versions.flatten().next().context("there is no PostgreSQL in the guest's packages")?;
        let mut command = Command::new(self.root.join("lib64/ld-linux-x86-64.so.2"));
        let libraries = ["lib", "usr/lib"].map(|lib| self.root.join(lib).join("x86_64-linux-gnu"));
        let libraries = libraries.map(|folder| folder.display().to_string()).join(":");
        command.args(["--library-path", &libraries]).arg(version.path().join("bin").join(name));
        let reached = [("PGHOST", hosts::GUEST.to_string()), ("PGCONNECT_TIMEOUT", PATIENCE.as_secs().to_string())];
        command.envs(reached).envs([("PGUSER", "postgres"), ("PGDATABASE", "postgres")]);
        command.envs([("PGSSLMODE", "disable"), ("PGGSSENCMODE", "disable")]);
        Ok(command)
    }
}

/// pgbench at work.
pub struct Load {
    child: Child,
    folder: PathBuf,
    /// Answers a second, each second.
    progress: Receiver<f64>,
}

/// What the client was told until the end.
pub struct Told {
    /// Each transaction that it was told of as committed.
    pub acks: Vec<Ack>,
    /// Its connections that broke.
    pub broken: usize,
}

impl Load {
    /// Waits until the load has been answered anew.
    pub fn await_work(&self) -> Result<()> {
        while self.progress.try_recv().is_ok() {}
        let until = Instant::now() + PATIENCE;
        let mut words = 0;
        while words < WORDS {
            let left = until.saturating_duration_since(Instant::now());
            match self.progress.recv_timeout(left) {
                Ok(answers) if answers > 0.0 => words += 1,
                Ok(_) => {}
                Err(_) => bail!("pgbench was not answered for {PATIENCE:?}, or has ended: see pgbench.log"),
            }
        }
        Ok(())
    }

    /// Ends the load when each client has been told of its last transaction; what they were told.
    pub fn stop(mut self) -> Result<Told> {
        // The signal that its own time limit would send.
        sh::run_aside(Command::new("kill").args(["-ALRM", &self.child.id().to_string()]))?;
        self.await_end()?;
        let status = self.child.wait()?;
        let log = self.folder.join(format!("told.{}", self.child.id()));
        let log = fs::read_to_string(&log).with_context(|| format!("{} ({status})", log.display()))?;
        let words = fs::read_to_string(self.folder.join("pgbench.log"))?;
        Ok(Told { acks: verdict::acks(&log)?, broken: words.matches(" aborted in ").count() })
    }

    /// Until pgbench has said its last word. It goes on saying that nothing comes while a client waits for an answer.
    fn await_end(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.progress.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(_) if Instant::now() < until => {}
                _ => bail!("a client was not told of its last transaction within {PATIENCE:?}"),
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes on the rate of each line of progress, and keeps all lines.
fn listen(words: impl BufRead + Send + 'static, mut kept: File) -> Receiver<f64> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in words.lines().map_while(Result::ok) {
            let _ = writeln!(kept, "{line}");
            if let Some(rate) = rate(&line) {
                let _ = sender.send(rate);
            }
        }
    });
    receiver
}

/// `progress: 5.0 s, 36.0 tps, lat …` says 36.
fn rate(line: &str) -> Option<f64> {
    line.strip_prefix("progress: ")?.split(", ").find_map(|part| part.strip_suffix(" tps")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_a_rate() {
        let table = [
            ("progress: 5.0 s, 36.0 tps, lat 90.314 ms stddev 65.717, 0 failed", Some(36.0)),
            ("progress: 6.0 s, 0.0 tps, lat 0.000 ms stddev 0.000, 0 failed", Some(0.0)),
            ("tps = 66.183757 (without initial connection time)", None),
            ("pgbench: error: client 2 aborted in command 4 of script 0; perhaps the backend died", None),
        ];
        for (line, expected) in table {
            assert_eq!(rate(line), expected, "{line}");
        }
    }
}
