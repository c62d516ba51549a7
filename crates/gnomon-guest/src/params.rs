//! What the guest is asked to do: one set of names, written `gn.NAME=VALUE` on a kernel command line and
//! `--NAME VALUE` in a shell.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::net::Address;

/// Everything a run can be told. [`Params::default`] is the demo's middle-sized workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// `disk` (or `file`): what holds the records.
    pub disk: String,
    /// `seed`: decides the pattern of the records and the order of all accesses.
    pub seed: u64,
    /// `records`: how many 4 KiB records; 0 means as many as the disk holds.
    pub records: u64,
    /// `zipf`: exponent of the popularity law. 0.9 to 1 is what published block traces show.
    pub zipf: f64,
    /// `cluster`: neighbouring records that share their popularity, as rows of one table do. Default 64 KiB.
    pub cluster: u64,
    /// `read_iops`: reads asked for per second; 0 means none.
    pub read_iops: u64,
    /// `write_iops`: rewrites asked for per second; 0 means none.
    pub write_iops: u64,
    /// `scan`: one read in this many starts a sequential burst; 0 means none do.
    pub scan: u64,
    /// `scan_kib`: length of such a burst, read 64 KiB at a time.
    pub scan_kib: u64,
    /// `sync`: writes between two `fdatasync`; 0 means only at the end.
    pub sync: u64,
    /// `buf`: MiB of RAM that the guest keeps dirtying and checking.
    pub buf_mib: u64,
    /// `dirty`: pages of it dirtied at each tick.
    pub dirty: u64,
    /// `tick_us`: microseconds between two heartbeats.
    pub tick: Duration,
    /// `heartbeat`: name of the virtio-serial port for heartbeats.
    pub heartbeat: String,
    /// `report`: name of the virtio-serial port for reports and commands.
    pub report: String,
    /// `bench`: 1 to carry out loads at the report port instead of the workload.
    pub bench: bool,
    /// `memory`: 1 to take and give back memory as the report port says instead of the workload; no disk is needed then.
    pub memory: bool,
    /// `ip`: address of the first network card, such as 10.0.0.2/24; left out, none is looked for.
    pub ip: Option<Address>,
    /// `answer`: TCP port where lines are counted and answered; 0 means none.
    pub answer: u16,
    /// `idle`: 1 to do nothing else: no disk and no ports are needed then.
    pub idle: bool,
    /// `seconds`: how long a run in a shell lasts.
    pub seconds: u64,
    /// `versions`: where a shell command writes or reads the version dump; empty means nowhere.
    pub versions: String,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            disk: "/dev/vda".to_owned(),
            seed: 1,
            records: 0,
            zipf: 0.99,
            cluster: 16,
            read_iops: 400,
            write_iops: 50,
            scan: 200,
            scan_kib: 2048,
            sync: 32,
            buf_mib: 32,
            dirty: 1,
            tick: Duration::from_millis(1),
            heartbeat: "gnomon.heartbeat".to_owned(),
            report: "gnomon.report".to_owned(),
            bench: false,
            memory: false,
            ip: None,
            answer: 0,
            idle: false,
            seconds: 5,
            versions: String::new(),
        }
    }
}

/// A word we do not understand, and where it stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamFault {
    name: String,
    value: String,
}

impl fmt::Display for ParamFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parameter {}={}: unknown name, or a value that does not parse", self.name, self.value)
    }
}

impl Params {
    /// Takes the `gn.` words of a kernel command line; other words are the kernel's.
    pub fn from_kernel(line: &str) -> Result<Params, ParamFault> {
        let words = line.split_whitespace().filter_map(|word| word.strip_prefix("gn."));
        Params::from_pairs(words.map(|word| word.split_once('=').unwrap_or((word, ""))))
    }

    /// Takes `--name value` pairs from a shell. Dashes and underscores in names are alike.
    pub fn from_shell(arguments: &[String]) -> Result<Params, ParamFault> {
        let pairs = arguments.chunks(2).map(|pair| {
            let value = pair.get(1).map_or("", String::as_str);
            (pair.first().map_or("", String::as_str).strip_prefix("--").unwrap_or(""), value)
        });
        Params::from_pairs(pairs)
    }

    fn from_pairs<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Params, ParamFault> {
        let mut params = Params::default();
        let pairs: BTreeMap<String, &str> = pairs.map(|(name, value)| (name.replace('-', "_"), value)).collect();
        for (name, value) in pairs {
            params.set(&name, value).ok_or(ParamFault { name, value: value.to_owned() })?;
        }
        Ok(params)
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        let number = || value.parse::<u64>().ok();
        match name {
            "disk" | "file" => self.disk = value.to_owned(),
            "seed" => self.seed = number()?,
            "records" => self.records = number()?,
            "zipf" => self.zipf = value.parse().ok().filter(|zipf: &f64| (0.0..=4.0).contains(zipf))?,
            "cluster" => self.cluster = number()?.max(1),
            "read_iops" => self.read_iops = number()?,
            "write_iops" => self.write_iops = number()?,
            "scan" => self.scan = number()?,
            "scan_kib" => self.scan_kib = number()?,
            "sync" => self.sync = number()?,
            "buf" => self.buf_mib = number()?,
            "dirty" => self.dirty = number()?,
            "tick_us" => self.tick = Duration::from_micros(number()?.max(50)),
            "heartbeat" => self.heartbeat = value.to_owned(),
            "report" => self.report = value.to_owned(),
            "bench" => self.bench = number()? != 0,
            "memory" => self.memory = number()? != 0,
            "ip" => self.ip = Some(value.parse().ok()?),
            "answer" => self.answer = value.parse().ok()?,
            "idle" => self.idle = number()? != 0,
            "seconds" => self.seconds = number()?,
            "versions" => self.versions = value.to_owned(),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_line_gives_its_gn_words_and_leaves_the_rest() {
        let params =
            Params::from_kernel("console=ttyS0 quiet gn.seed=9 gn.disk=/dev/vdb gn.zipf=0.8 panic=-1\n").unwrap();
        assert_eq!((params.seed, params.disk.as_str(), params.zipf), (9, "/dev/vdb", 0.8));
        assert_eq!(params.read_iops, Params::default().read_iops);
    }

    #[test]
    fn a_shell_says_the_same_with_dashes() {
        let words = ["--file", "/tmp/f", "--read-iops", "7"].map(str::to_owned);
        let params = Params::from_shell(&words).unwrap();
        assert_eq!((params.disk.as_str(), params.read_iops), ("/tmp/f", 7));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "gn.sed=1",
            "gn.seed=x",
            "gn.seed",
            "gn.zipf=9",
            "gn.zipf=NaN",
            "gn.records=-1",
            "gn.ip=10.0.0.2",
            "gn.answer=65536",
        ] {
            assert!(Params::from_kernel(line).is_err(), "{line} was taken");
        }
        assert!(Params::from_shell(&["seed".to_owned(), "1".to_owned()]).is_err());
    }
}
