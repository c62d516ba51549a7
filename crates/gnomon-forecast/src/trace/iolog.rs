//! fio's log of what a job did (`write_iolog`), versions 2 and 3. Version 3 has times in microseconds; version 2 has
//! waits between requests, and without these no clock.
//!
//! ```text
//!   fio version 2 iolog            fio version 3 iolog
//!   /dev/vda add                   2 /dev/vda add
//!   /dev/vda read 4096 8192        872 /dev/vda write 0 16384
//!   /dev/vda wait 500 0
//! ```
//! One file at a time: addresses of two would be mixed up.
//!
//! Source: fio's HOWTO, "Trace file format".

use gnomon_terms::{Access, Op};

use super::{LineError, STEP_WITHOUT_CLOCK_US, request};

const LINE: &str = "fio version 2|3 iolog, then [time] file action [offset length]";

/// Reads the lines of one job.
#[derive(Debug, Default)]
pub(super) struct Iolog {
    version: u8,
    file: Option<String>,
    /// Version 2: the time so far, and whether any wait was seen.
    clock: u64,
    waits: bool,
}

impl Iolog {
    pub(super) fn line(&mut self, line: &str) -> Result<Option<Access>, LineError> {
        if self.version == 0 {
            self.version = match line {
                "fio version 2 iolog" => 2,
                "fio version 3 iolog" => 3,
                _ => return Err(("not the first line of an iolog of version 2 or 3", LINE)),
            };
            return Ok(None);
        }
        let mut fields: Vec<&str> = line.split_ascii_whitespace().take(6).collect();
        let time = match (self.version, fields.is_empty()) {
            (3, false) => Some(number(fields.remove(0))?),
            _ => None,
        };
        let (file, action, extent) = match fields[..] {
            [file, "add" | "open" | "close"] => return self.of(file).map(|()| None),
            [file, action, offset, length] => (file, action, (number(offset)?, number(length)?)),
            _ => return Err(("neither a file's action nor a request", LINE)),
        };
        let op = match action {
            "read" => Op::Read,
            "write" => Op::Write,
            "trim" => Op::Discard,
            "sync" | "datasync" | "sync_file_range" => return Ok(None),
            "wait" if self.version == 2 => return self.wait(extent.0),
            _ => return Err(("an unknown action", LINE)),
        };
        self.of(file)?;
        let at = time.unwrap_or_else(|| self.tick());
        match extent {
            (_, 0) => Ok(None),
            (offset, length) => request(at, op, offset, length).map(Some).map_err(|what| (what, LINE)),
        }
    }

    fn of(&mut self, file: &str) -> Result<(), LineError> {
        match self.file.get_or_insert_with(|| file.to_owned()) == file {
            true => Ok(()),
            false => Err(("a second file; log one at a time", LINE)),
        }
    }

    fn wait(&mut self, micros: u64) -> Result<Option<Access>, LineError> {
        (self.clock, self.waits) = (self.clock.saturating_add(micros), true);
        Ok(None)
    }

    /// The time of a request of version 2.
    fn tick(&mut self) -> u64 {
        let now = self.clock;
        if !self.waits {
            self.clock = self.clock.saturating_add(STEP_WITHOUT_CLOCK_US);
        }
        now
    }
}

fn number(text: &str) -> Result<u64, LineError> {
    text.parse().map_err(|_| ("not a whole number", LINE))
}
