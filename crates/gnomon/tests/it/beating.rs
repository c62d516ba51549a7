//! A Linux guest with QEMU's own agent, which counts, keeps the count on its disk and compares, and says so on its
//! console: `beat 17 of one`, where `one` is the first line of its disk. A console's log misses nothing, whoever listens.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::{
    cache,
    house::{House, await_some, tool},
};

/// The first line of its disk when it boots.
pub const FIRST: &str = "one";

/// A node with such a guest, called `tiny`, on a volume called `data`.
pub struct Beating {
    /// The node.
    pub house: House,
}

impl Beating {
    /// Boots it, and waits until it beats.
    pub fn boot(more: &[&str]) -> Beating {
        let house = House::new();
        let mut disk = format!("{FIRST}\n").into_bytes();
        disk.resize(1 << 20, 0);
        fs::write(house.path("data.raw"), disk).expect("written");
        house.ask(&["volume", "import", "data", "--file", &house.text("data.raw")]);
        let (kernel, initrd) = (cache::kernel(), cache::initrd("agent-guest/initrd.cpio"));
        let run = ["vm", "run", "tiny", "--memory", "128M", "--accel", "tcg", "--disk", "data", "--guest-agent"];
        let boot = ["--kernel", &kernel, "--initrd", &initrd, "--append", "console=ttyS0 quiet"];
        assert_eq!(house.ask(&[&run, &boot[..], more].concat())["status"], "running");
        let beating = Beating { house };
        beating.goes_on(FIRST);
        beating
    }

    /// The VM as it is shown.
    pub fn show(&self) -> Value {
        self.house.ask(&["vm", "show", "tiny"])
    }

    /// The log of its console, in the QEMU that it has now.
    pub fn console_log(&self) -> PathBuf {
        let socket = self.show()["console"].as_str().expect("a console").to_string();
        PathBuf::from(socket).with_file_name("console.log")
    }

    /// It beats some more times, with this first line on its disk.
    pub fn goes_on(&self, first: &str) {
        let log = self.console_log();
        let said = || beats(&fs::read(&log).unwrap_or_default());
        let until = said().len() + 3;
        let last = || said().get(until..).and_then(|new| Some(new.last()?.1 == first));
        let state = || String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        await_some(&format!("a beat of {first}"), state, || last().filter(|is_it| *is_it));
    }

    /// The first line of its disk, as the host sees it.
    pub fn on_disk(&self) -> String {
        let disk = tool("nbdcopy", &[&self.house.nbd("data"), "-"]);
        String::from_utf8_lossy(disk.split(|byte| *byte == b'\n').next().unwrap_or_default()).into_owned()
    }

    /// One QEMU, the one that is shown.
    pub fn runs_once(&self) {
        let pid = self.show()["pid"].as_u64().expect("a process");
        assert_eq!(self.house.qemus(), [pid]);
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        // A QEMU outlives its daemon; it must not outlive its test.
        self.house.run(&["vm", "stop", "tiny", "--force"]);
    }
}

/// The beats in what a console said, whole lines only: their numbers and the disk's first line. A count that was not on
/// the disk any more is no beat but the end of the test.
pub fn beats(console: &[u8]) -> Vec<(u64, String)> {
    let whole = console.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let text = String::from_utf8_lossy(&console[..whole]).into_owned();
    let beat = |line: &str| {
        assert!(!line.starts_with("lost "), "the disk has not what the guest remembers: {line}");
        let (count, first) = line.strip_prefix("beat ")?.split_once(" of ")?;
        Some((count.parse().ok()?, first.to_string()))
    };
    text.lines().filter_map(|line| beat(line.trim_end())).collect()
}
