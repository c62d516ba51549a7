//! Bursts of memory: the host says how much, and is told how long each step of it took.
//!
//! Commands, one a line, each answered by a JSON line:
//!
//! - `look`: what the kernel says of its memory, and how much is held here.
//! - `grown KIB`: the same, as soon as the kernel has that much in all.
//! - `touch MIB`: takes that much more and writes every page of it, in steps. A step for which the guest has not enough
//!   memory waits until it has, as a program that swaps or is throttled would: that is the stall a host can prevent.
//! - `check`: how many pages are not as they were written.
//! - `drop`: gives all of it back to the kernel.
//! - `poweroff`: ends the machine.

use std::{
    fs, io,
    ptr::{self, NonNull},
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::{chance::scramble, uevents::Uevents};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// What is touched between two looks at the clock and at what is left.
const STEP: usize = 4 * MIB;
/// Left to the kernel, which would kill us for the last of it: what it needs for a DIMM of 1 GiB (16 MiB of page
/// descriptors), and as much again.
const RESERVE: usize = 32 * MIB;
/// How often the kernel is asked again while it tells nothing. It tells of a DIMM at once; of what a virtio-mem device gives
/// within memory that is plugged already, and of what other programs let go of, it tells nobody.
const LOOK_EACH: Duration = Duration::from_millis(10);
/// How long a step or a host waits for memory. Then what there is is told.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the host can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// What there is.
    Look,
    /// The same, once the kernel has so many KiB.
    Grown(u64),
    /// So many MiB more.
    Touch(usize),
    /// Whether all is as it was written.
    Check,
    /// All of it back.
    Drop,
    /// End of the machine.
    Poweroff,
}

impl Command {
    /// The command in a line, if it is one.
    pub fn parse(line: &str) -> Option<Command> {
        let mut words = line.split_whitespace();
        let (deed, number) = (words.next()?, words.next());
        let command = match (deed, number) {
            ("look", None) => Command::Look,
            ("grown", Some(kib)) => Command::Grown(kib.parse().ok()?),
            ("touch", Some(mib)) => Command::Touch(mib.parse().ok().filter(|mib| *mib <= MAX_MIB)?),
            ("check", None) => Command::Check,
            ("drop", None) => Command::Drop,
            ("poweroff", None) => Command::Poweroff,
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

/// The largest burst: 1 TiB.
const MAX_MIB: usize = 1 << 20;

/// Obeys until `poweroff`, or until nobody can command any more. `say` sends a line, however long that takes.
pub fn serve(commands: &Receiver<Command>, mut say: impl FnMut(&str)) -> io::Result<()> {
    let mut held: Vec<Area> = Vec::new();
    say(&Meminfo::read()?.line("ready", &held));
    for command in commands {
        let line = match command {
            Command::Look => Meminfo::read()?.line("memory", &held),
            Command::Grown(kib) => wait_for(|now| now.total_kib >= kib)?.0.line("memory", &held),
            Command::Touch(mib) => {
                let mut area = Area::map(mib * MIB)?;
                let burst = touch(&mut area)?;
                held.push(area);
                burst.line(mib)
            }
            Command::Check => {
                let wrong: usize = held.iter().map(Area::wrong).sum();
                format!("{{\"kind\":\"checked\",\"held_mib\":{},\"wrong\":{wrong}}}\n", mib_of(&held))
            }
            Command::Drop => {
                held.clear();
                Meminfo::read()?.line("memory", &held)
            }
            Command::Poweroff => return Ok(()),
        };
        say(&line);
    }
    Ok(())
}

/// How a burst went.
#[derive(Debug, Default)]
struct Burst {
    touched: usize,
    waited: Duration,
    steps: Vec<Duration>,
}

impl Burst {
    fn line(&self, asked: usize) -> String {
        let micros: Vec<String> = self.steps.iter().map(|step| step.as_micros().to_string()).collect();
        let (all, slowest) = (self.steps.iter().sum::<Duration>(), self.steps.iter().max().copied());
        format!(
            "{{\"kind\":\"touched\",\"asked_mib\":{asked},\"mib\":{},\"micros\":{},\"waited_us\":{},\"slowest_us\":{},\
             \"steps_us\":[{}]}}\n",
            self.touched / MIB,
            all.as_micros(),
            self.waited.as_micros(),
            slowest.unwrap_or_default().as_micros(),
            micros.join(",")
        )
    }
}

/// Writes every page of an area for the first time, for as long as there is memory for it.
fn touch(area: &mut Area) -> io::Result<Burst> {
    let mut burst = Burst::default();
    while burst.touched < area.bytes {
        let bytes = STEP.min(area.bytes - burst.touched);
        let (begun, wanted) = (Instant::now(), ((bytes + RESERVE) >> 10) as u64);
        let (now, waited) = wait_for(|now| now.available_kib >= wanted)?;
        if now.available_kib < wanted {
            break;
        }
        area.write(burst.touched / PAGE..(burst.touched + bytes) / PAGE);
        burst.touched += bytes;
        burst.waited += waited;
        burst.steps.push(begun.elapsed());
    }
    area.written = burst.touched / PAGE;
    Ok(burst)
}

/// What the kernel says of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Meminfo {
    total_kib: u64,
    available_kib: u64,
}

impl Meminfo {
    fn read() -> io::Result<Meminfo> {
        let text = fs::read_to_string("/proc/meminfo")?;
        Meminfo::parse(&text).ok_or_else(|| io::Error::other("/proc/meminfo does not say how much there is"))
    }

    fn parse(text: &str) -> Option<Meminfo> {
        let kib = |name: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        Some(Meminfo { total_kib: kib("MemTotal:")?, available_kib: kib("MemAvailable:")? })
    }

    fn line(&self, kind: &str, held: &[Area]) -> String {
        format!(
            "{{\"kind\":\"{kind}\",\"total_kib\":{},\"available_kib\":{},\"held_mib\":{}}}\n",
            self.total_kib,
            self.available_kib,
            mib_of(held)
        )
    }
}

/// Asks the kernel until it is as wanted or patience has ended: how it is then, and how long that took.
fn wait_for(is_there: impl Fn(&Meminfo) -> bool) -> io::Result<(Meminfo, Duration)> {
    let now = Meminfo::read()?;
    if is_there(&now) {
        return Ok((now, Duration::ZERO));
    }
    // Opened before the next look, so that what comes after it is heard.
    let (begun, told) = (Instant::now(), Uevents::open()?);
    loop {
        let (now, waited) = (Meminfo::read()?, begun.elapsed());
        if is_there(&now) || waited >= PATIENCE {
            return Ok((now, waited));
        }
        told.wait(LOOK_EACH)?;
    }
}

fn mib_of(held: &[Area]) -> usize {
    held.iter().map(|area| area.written * PAGE).sum::<usize>() / MIB
}

/// Memory straight from the kernel and back to it: an allocator would keep it.
struct Area {
    at: NonNull<u64>,
    bytes: usize,
    /// Pages that have been written, from the first on.
    written: usize,
}

impl Area {
    /// `bytes` that the kernel has not given yet; an empty area has one page.
    fn map(bytes: usize) -> io::Result<Area> {
        let bytes = bytes.max(PAGE);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // More than there is may be asked for: the rest is to come while it waits.
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new private mapping at an address of the kernel's choice disturbs nobody's memory.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, flags)? };
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Area { at, bytes, written: 0 })
    }

    /// Writes a word of its own to each of these pages, which are below `bytes`.
    fn write(&mut self, pages: std::ops::Range<usize>) {
        for page in pages {
            // SAFETY: the page is within the mapping, which is ours alone and aligned to pages.
            unsafe { self.at.add(page * PAGE / 8).write_volatile(scramble(page as u64)) };
        }
    }

    /// Written pages that do not hold their word.
    fn wrong(&self) -> usize {
        // SAFETY: as in `write`.
        let word = |page: usize| unsafe { self.at.add(page * PAGE / 8).read_volatile() };
        (0..self.written).filter(|&page| word(page) != scramble(page as u64)).count()
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and nobody refers to it any more.
        if let Err(err) = unsafe { munmap(self.at.as_ptr().cast(), self.bytes) } {
            eprintln!("gnomon-guest: {} bytes could not be given back: {err}", self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn commands_are_read_and_nothing_else() {
        let table = [
            ("look", Some(Command::Look)),
            ("grown 1024\r", Some(Command::Grown(1024))),
            ("touch 3", Some(Command::Touch(3))),
            ("touch 3 4", None),
            ("touch", None),
            ("touch -1", None),
            ("touch 1048577", None),
            ("drop", Some(Command::Drop)),
            ("check now", None),
            ("", None),
        ];
        for (line, command) in table {
            assert_eq!(Command::parse(line), command, "{line}");
        }
    }

    #[test]
    fn a_burst_is_touched_checked_and_given_back() {
        let (tell, commands) = channel();
        for line in ["touch 5", "check", "touch 0", "drop", "check", "grown 1", "poweroff", "look"] {
            tell.send(Command::parse(line).unwrap()).unwrap();
        }
        let mut said = Vec::new();
        serve(&commands, |line| said.push(line.to_owned())).unwrap();
        let begins = [
            "{\"kind\":\"ready\",\"total_kib\":",
            "{\"kind\":\"touched\",\"asked_mib\":5,\"mib\":5,\"micros\":",
            "{\"kind\":\"checked\",\"held_mib\":5,\"wrong\":0}",
            "{\"kind\":\"touched\",\"asked_mib\":0,\"mib\":0,",
            "{\"kind\":\"memory\",",
            "{\"kind\":\"checked\",\"held_mib\":0,\"wrong\":0}",
            "{\"kind\":\"memory\",",
        ];
        assert_eq!(said.len(), begins.len());
        for (line, begin) in said.iter().zip(begins) {
            assert!(line.starts_with(begin) && line.ends_with("}\n"), "{line}");
        }
    }

    #[test]
    fn a_page_that_changed_is_seen() {
        let mut area = Area::map(STEP).unwrap();
        touch(&mut area).unwrap();
        assert_eq!(area.wrong(), 0);
        // SAFETY: within the mapping.
        unsafe { area.at.add(7 * PAGE / 8).write_volatile(1) };
        assert_eq!(area.wrong(), 1);
    }

    #[test]
    fn the_kernels_words_are_read() {
        let text = "MemTotal:  1000 kB\nMemFree: 5 kB\nMemAvailable:   500 kB\n";
        assert_eq!(Meminfo::parse(text), Some(Meminfo { total_kib: 1000, available_kib: 500 }));
        assert_eq!(Meminfo::parse("MemTotal: x kB\nMemAvailable: 5 kB"), None);
    }
}
