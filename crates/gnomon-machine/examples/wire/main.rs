//! What is sent for a page that a guest has written: ours, beside raw pages, QEMU's XBZRLE and zstd.
//!
//! `wire KERNEL INITRD LOAD [CHECKPOINTS]`: a Linux guest under a real load, made to stand every 100 ms. What it has
//! written since is told to all coders. Prints one JSON object. `cargo xtask bench wire` runs it.

mod coders;
#[path = "../measured/mod.rs"]
mod measured;
mod xbzrle;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use coders::{Contender, Written, contenders};
use gnomon_qemu::{DirtyTracker, Qemu, TrackTarget, VmPaths, VmSpec, track};
use gnomon_terms::{Bytes, PAGE_SIZE, PageNumber, PageSet};
use measured::{Fallible, PATIENCE, boot};
use xbzrle::Page;

/// All of a small server, in memory: its programs, its data, and room to work.
const MEMORY: u64 = 1 << 30;
/// From one checkpoint to the next.
const INTERVAL: Duration = Duration::from_millis(100);
/// Checkpoints that are told and not counted: a guest is protected for days, and in its first seconds each page is new to
/// every coder.
const WARM_UP: usize = 100;
/// What a guest's init says when its load has begun.
const AT_WORK: &str = "is at work";
/// The share of a guest's memory that the daemon spends on remembering what the shadow has.
const REMEMBERED: u64 = 8;

fn main() -> Fallible<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, load, rest @ ..] = &words[..] else {
        return Err("usage: wire KERNEL INITRD LOAD [CHECKPOINTS]".into());
    };
    let count = rest.first().map_or(Ok(200), |count| count.parse::<usize>())?;
    let home = tempfile::tempdir()?;
    let spec = VmSpec {
        kernel: Some(kernel.into()),
        initrd: Some(initrd.into()),
        cmdline: Some(format!("console=ttyS0 quiet panic=-1 load={load}")),
        ..VmSpec::new("measured", MEMORY)
    };
    let qemu = boot(home.path(), spec)?;
    let measured = await_work(&qemu, home.path()).and_then(|()| measure(&qemu, count));
    qemu.kill()?;
    println!("{}", measured?.json(load, count));
    Ok(())
}

fn await_work(qemu: &Qemu, home: &Path) -> Fallible<()> {
    let began = Instant::now();
    let console = VmPaths::new(&home.join("vm")).console_log();
    while !fs::read_to_string(&console).unwrap_or_default().contains(AT_WORK) {
        if began.elapsed() > PATIENCE * 2 || qemu.exit_watch().exited().is_some() {
            return Err(format!("the guest does not work:\n{}", fs::read_to_string(&console)?).into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What it came to.
struct Measured {
    contenders: Vec<Contender>,
    pages: u64,
}

fn measure(qemu: &Qemu, count: usize) -> Fallible<Measured> {
    let ram = qemu.open_ram()?.ok_or("the guest's RAM is its own")?;
    let mut tracker = track(&TrackTarget::new(qemu.record().pid, &ram)?)?.tracker;
    eprintln!("tracked by {}", tracker.tier());
    let mut mirror = Mirror { bytes: vec![0; ram.size().0 as usize] };
    mirror.catch_up(qemu, &mut *tracker)?;
    let all = contenders(Bytes(ram.size().0 / REMEMBERED), |tell| {
        mirror.pages().iter().enumerate().for_each(|(page, now)| tell(PageNumber(page as u64), now));
    });
    // It went on while they were told.
    mirror.catch_up(qemu, &mut *tracker)?;
    let mut measured = Measured { contenders: all, pages: 0 };
    for number in 0..WARM_UP + count {
        if number == WARM_UP {
            measured.contenders.iter_mut().for_each(Contender::start);
            measured.pages = 0;
        }
        thread::sleep(INTERVAL);
        let written = mirror.catch_up(qemu, &mut *tracker)?;
        let written = mirror.written(&written);
        measured.contenders.iter_mut().for_each(|contender| contender.take(&written));
        measured.pages += written.len() as u64;
    }
    Ok(measured)
}

/// The guest's memory as it was when it stood last.
struct Mirror {
    bytes: Vec<u8>,
}

impl Mirror {
    /// Makes the guest stand, and takes in what it has written: which pages these are. It runs on before this returns.
    fn catch_up(&mut self, qemu: &Qemu, tracker: &mut dyn DirtyTracker) -> Fallible<PageSet> {
        qemu.qmp().stop()?;
        let mut dirty = PageSet::new();
        tracker.scan(&mut dirty)?;
        for run in dirty.runs() {
            let (from, length) = ((run.start.0 * PAGE_SIZE) as usize, run.bytes().0 as usize);
            tracker.read(run.start, &mut self.bytes[from..from + length])?;
        }
        qemu.qmp().cont()?;
        Ok(dirty)
    }

    fn pages(&self) -> &[Page] {
        self.bytes.as_chunks().0
    }

    fn written(&self, pages: &PageSet) -> Vec<Written<'_>> {
        pages.pages().map(|page| Written { page, new: &self.pages()[page.0 as usize] }).collect()
    }
}

impl Measured {
    fn json(&self, load: &str, count: usize) -> String {
        let pages = self.pages.max(1) as f64;
        let each = |of: fn(&Contender, f64) -> f64| {
            let one = |contender: &Contender| format!(r#""{}":{:.2}"#, contender.name, of(contender, pages));
            self.contenders.iter().map(one).collect::<Vec<_>>().join(",")
        };
        format!(
            r#"{{"load":"{load}","n":{count},"pages":{},"bytes_per_page":{{{}}},"us_per_page":{{{}}}}}"#,
            self.pages,
            each(|contender, pages| contender.bytes as f64 / pages),
            each(|contender, pages| contender.took.as_secs_f64() * 1e6 / pages),
        )
    }
}
