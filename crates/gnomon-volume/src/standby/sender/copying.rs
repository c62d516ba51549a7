//! The first copy: everything owed, in address order, pass after pass, until little is left to follow.

use gnomon_proto::{
    Class,
    frame::{Content, Message},
};
use gnomon_terms::{BlockCount, Extent};

use super::{SenderError, SenderPhase, SenderState, StandbySender};
use crate::{mover::read_content, stripes::split};

/// Pushes that may be unanswered: 64 MiB at most, more than a link of 1 GB/s and 50 ms has on its way.
const IN_FLIGHT: usize = 64;

/// Blocks looked at for a list of what is owed: 256 MiB of disk, 65 536 runs at most.
const WINDOW: u64 = 65_536;

/// Passes, at most. Each leaves what was written while it was sent.
const PASSES: u32 = 8;

/// What may be left for the first turn: 16 MiB.
const LITTLE: BlockCount = BlockCount(4096);

impl StandbySender {
    /// Sends what is owed until little is. All of it has been answered when this returns.
    pub(super) fn copy(&self) -> Result<(), SenderError> {
        let mut before = None;
        for pass in 0.. {
            let owed = self.parts.outbox.owed();
            if self.is_ended() || !another_pass(pass, owed, before) {
                break;
            }
            self.push_owed()?;
            self.await_answers(0);
            before = Some(owed);
        }
        Ok(())
    }

    fn push_owed(&self) -> Result<(), SenderError> {
        let blocks = self.parts.outbox.map().blocks().0;
        for start in (0..blocks).step_by(WINDOW as usize) {
            let window = Extent::new(start, WINDOW.min(blocks - start));
            for piece in self.parts.outbox.owed_runs(window).into_iter().flat_map(split) {
                if !self.await_answers(IN_FLIGHT - 1) {
                    return Ok(());
                }
                self.push(piece)?;
            }
        }
        Ok(())
    }

    /// A write that comes between the taking and the reading makes the block owed again.
    fn push(&self, piece: Extent) -> Result<(), SenderError> {
        {
            let _guard = self.parts.stripes.lock(piece);
            self.parts.outbox.take(piece);
        }
        let content = read_content(&*self.parts.local, piece)?;
        if let Content::Data(data) = &content {
            self.carried.fetch_add(data.len() as u64, std::sync::atomic::Ordering::Relaxed);
        }
        let seq = {
            let mut state = self.state.lock();
            state.pushes += 1;
            let seq = state.pushes;
            state.in_flight.insert(seq, piece);
            seq
        };
        let (stream, epoch, class) = (self.parts.stream, self.parts.epoch, Class::Background);
        Ok(self.parts.wire.send(Message::Push { stream, epoch, seq, extent: piece, class, content })?)
    }

    /// Waits until no more than `few` pushes are unanswered; false when it has ended meanwhile.
    fn await_answers(&self, few: usize) -> bool {
        let mut state = self.state.lock();
        while state.phase != SenderPhase::Ended && state.in_flight.len() > few {
            self.changed.wait(&mut state);
        }
        state.phase != SenderPhase::Ended
    }
}

impl SenderState {
    /// How much of a volume of so many blocks the standby has, from 0 to 1.
    pub fn progress(&self, blocks: BlockCount) -> f64 {
        1.0 - self.owed.0 as f64 / (blocks.0 as f64).max(1.0)
    }
}

/// Whether to pass over so much, after `before` in the pass before: once, and again if it is much and passing makes it
/// less.
fn another_pass(passes: u32, owed: BlockCount, before: Option<BlockCount>) -> bool {
    match before {
        None => owed > BlockCount(0),
        Some(before) => passes < PASSES && owed > LITTLE && owed.0 < before.0 / 4 * 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_go_on_while_they_help() {
        let table = [
            ("nothing", 0, 0, None, false),
            ("a whole disk", 0, 1 << 20, None, true),
            ("little is the first turn", 1, 4096, Some(1 << 20), false),
            ("what was written meanwhile", 1, 50_000, Some(1 << 20), true),
            ("hardly less", 2, 45_000, Some(50_000), false),
            ("never for ever", 8, 10_000, Some(50_000), false),
        ];
        for (name, passes, owed, before, expected) in table {
            assert_eq!(another_pass(passes, BlockCount(owed), before.map(BlockCount)), expected, "{name}");
        }
    }
}
