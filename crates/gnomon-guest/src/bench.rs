//! Loads for a benchmark: the host says which, one line each, and is told how many operations were done in which time.
//!
//! `randread|randwrite|read|write BYTES DEPTH MILLIS` is answered by `{"kind":"bench","ops":N,"micros":M}`. Each of
//! `DEPTH` threads has one direct request under way; sequential ones take turns on one run through the disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::chance::Dice;

/// What direct I/O wants memory and lengths to be aligned to.
const ALIGN: usize = 4096;
/// The longest request and the most at once: 16 MiB of buffers.
const MAX_BYTES: usize = 1 << 20;
const MAX_DEPTH: usize = 16;

/// One load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    random: bool,
    write: bool,
    bytes: usize,
    depth: usize,
    time: Duration,
}

impl Load {
    fn parse(line: &str) -> Option<Load> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [deed, bytes, depth, millis] = words[..] else { return None };
        let (random, write) = match deed {
            "randread" => (true, false),
            "randwrite" => (true, true),
            "read" => (false, false),
            "write" => (false, true),
            _ => return None,
        };
        let bytes = bytes.parse().ok().filter(|bytes: &usize| *bytes <= MAX_BYTES && *bytes > 0)?;
        let depth = depth.parse().ok().filter(|depth| (1..=MAX_DEPTH).contains(depth))?;
        let time = Duration::from_millis(millis.parse().ok()?);
        bytes.is_multiple_of(ALIGN).then_some(Load { random, write, bytes, depth, time })
    }
}

/// Carries out what the host asks for at `port`, until it asks for `poweroff` or hangs up.
pub fn serve(disk: &Path, mut port: File) -> io::Result<()> {
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let disk = OpenOptions::new().read(true).write(true).custom_flags(direct).open(disk)?;
    let size = {
        use std::io::{Seek, SeekFrom};
        (&disk).seek(SeekFrom::End(0))?
    };
    let lines = BufReader::new(port.try_clone()?).lines();
    writeln!(port, "{{\"kind\":\"ready\"}}")?;
    for line in lines {
        let line = line?;
        match Load::parse(&line) {
            Some(load) => {
                let (ops, time) = run(&disk, size, load)?;
                writeln!(port, "{{\"kind\":\"bench\",\"ops\":{ops},\"micros\":{}}}", time.as_micros())?;
            }
            None if line.trim() == "poweroff" => return Ok(()),
            None => writeln!(port, "{{\"kind\":\"unknown\"}}")?,
        }
    }
    Ok(())
}

/// How many operations were done, and in which time. The first failure ends it.
fn run(disk: &File, size: u64, load: Load) -> io::Result<(u64, Duration)> {
    let places = size / load.bytes as u64;
    if places == 0 {
        return Err(io::Error::other("the disk is smaller than one request"));
    }
    let (next, done, begin) = (AtomicU64::new(0), AtomicU64::new(0), Barrier::new(load.depth));
    let started = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..load.depth as u64)
            .map(|number| {
                let (next, done, begin) = (&next, &done, &begin);
                scope.spawn(move || {
                    let mut dice = Dice::new(number + 1);
                    let mut memory = vec![0x5a; load.bytes + ALIGN];
                    let skip = memory.as_ptr().align_offset(ALIGN);
                    let buffer = &mut memory[skip..skip + load.bytes];
                    begin.wait();
                    while started.elapsed() < load.time {
                        let turn =
                            if load.random { dice.below(places) } else { next.fetch_add(1, Ordering::Relaxed) };
                        let at = turn % places * load.bytes as u64;
                        match load.write {
                            true => disk.write_all_at(buffer, at)?,
                            false => disk.read_exact_at(buffer, at)?,
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let died = |_| Err(io::Error::other("a thread of the load has died"));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(died))
    })?;
    Ok((done.into_inner(), started.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_direct_io_takes_is_a_load() {
        let table = [
            ("randread 4096 16 2000", true),
            ("write 1048576 4 1", true),
            ("read 4095 1 1", false),
            ("read 0 1 1", false),
            ("read 2097152 1 1", false),
            ("read 4096 17 1", false),
            ("read 4096 0 1", false),
            ("erase 4096 1 1", false),
            ("read 4096 1", false),
        ];
        for (line, fits) in table {
            assert_eq!(Load::parse(line).is_some(), fits, "{line}");
        }
    }

    #[test]
    fn operations_are_counted_and_stay_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let disk = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        disk.set_len(1 << 20).unwrap();
        for deed in ["randwrite", "write", "randread", "read"] {
            let load = Load::parse(&format!("{deed} 65536 3 20")).unwrap();
            let (ops, time) = run(&disk, 1 << 20, load).unwrap();
            assert!(ops >= 3 && time >= load.time, "{deed}: {ops} in {time:?}");
        }
        assert_eq!(disk.metadata().unwrap().len(), 1 << 20);
    }
}
