//! Says a checkpoint: pages coded into batches, the devices in pieces, the seal.
//!
//! What it remembers of the shadow ([`SentPages`], the devices as they were said last) holds for one session.

use gnomon_proto::frame::{MAX_PAYLOAD, Mark, Message, Stream};
use gnomon_terms::{Bytes, Epoch, PageNumber};

use super::told::Codings;
use crate::{
    page::{Page, Said, SentPages, batch::Writer, pack::Packer},
    wire::{Wire, WireClosed},
};

/// Devices are compared in pieces of so many bytes: a frame's header is about a tenth of it, and most of a device's
/// state does not change between checkpoints.
const GRAIN: usize = 512;

/// Speaks of one guest.
pub(super) struct Sender {
    stream: Stream,
    epoch: Epoch,
    sent: SentPages,
    device: Vec<u8>,
    writer: Writer,
    packer: Packer,
    records: u64,
    /// Whether batches are packed.
    pub packs: bool,
    spent: Spent,
}

/// What has been said since it was asked last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub codings: Codings,
    pub bytes: u64,
    pub device: u64,
}

impl Sender {
    /// Remembers up to `memory` of what it sent.
    pub fn new(stream: Stream, epoch: Epoch, memory: Bytes) -> Sender {
        Sender {
            stream,
            epoch,
            sent: SentPages::new(memory),
            device: Vec::new(),
            writer: Writer::default(),
            packer: Packer::default(),
            records: 0,
            packs: false,
            spent: Spent::default(),
        }
    }

    /// Another session begins: the shadow has what it has applied, and nothing else.
    pub fn clear(&mut self) {
        self.sent.clear();
        self.device.clear();
        self.writer = Writer::default();
        self.packer = Packer::default();
        self.records = 0;
        self.spent = Spent::default();
    }

    /// Says a page of checkpoint `checkpoint`; pages rise until [`Sender::flush`]. Blocks when a batch is full and the
    /// link is behind.
    pub fn page(&mut self, checkpoint: u64, page: PageNumber, now: &Page, wire: &dyn Wire) -> Result<(), WireClosed> {
        let said = self.sent.say(page, now);
        self.spent.codings.note(&said);
        if let Said::Record(coding) = said {
            self.writer.push(page, coding);
            if self.writer.is_full() {
                self.flush(checkpoint, wire)?;
            }
        }
        Ok(())
    }

    /// Sends what is in the batch.
    pub fn flush(&mut self, checkpoint: u64, wire: &dyn Wire) -> Result<(), WireClosed> {
        if self.writer.is_empty() {
            return Ok(());
        }
        let (body, records) = self.writer.take();
        let packed = if self.packs { self.packer.pack(&body) } else { None };
        let (packed, body) = packed.map_or((false, body), |short| (true, short));
        self.records += u64::from(records);
        self.spent.bytes += body.len() as u64;
        let (stream, epoch) = (self.stream, self.epoch);
        wire.send(Message::Pages { stream, epoch, checkpoint, records, packed, body })
    }

    /// Says the devices: what differs from what was said last.
    pub fn device(&mut self, checkpoint: u64, now: Vec<u8>, wire: &dyn Wire) -> Result<(), WireClosed> {
        for (from, to) in changed_pieces(&self.device, &now) {
            let bytes = now[from..to].to_vec();
            self.spent.bytes += bytes.len() as u64;
            self.spent.device += bytes.len() as u64;
            let (stream, epoch) = (self.stream, self.epoch);
            wire.send(Message::Device { stream, epoch, checkpoint, at: from as u64, bytes })?;
        }
        self.device = now;
        Ok(())
    }

    /// Says that the checkpoint is complete.
    pub fn seal(&mut self, checkpoint: u64, marks: Vec<Mark>, wire: &dyn Wire) -> Result<(), WireClosed> {
        let records = std::mem::take(&mut self.records);
        let (stream, epoch, device) = (self.stream, self.epoch, self.device.len() as u32);
        wire.send(Message::Seal { stream, epoch, checkpoint, records, device, marks })
    }

    /// What has been said since this was asked last.
    pub fn spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }
}

/// The pieces of `now` that are not as in `old`, in order, each short enough for a frame.
fn changed_pieces(old: &[u8], now: &[u8]) -> Vec<(usize, usize)> {
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    for from in (0..now.len()).step_by(GRAIN) {
        let to = (from + GRAIN).min(now.len());
        if old.get(from..to) == Some(&now[from..to]) {
            continue;
        }
        match pieces.last_mut() {
            Some(last) if last.1 == from && to - last.0 <= MAX_PAYLOAD => last.1 = to,
            _ => pieces.push((from, to)),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_changed_is_said() {
        let old = vec![1u8; 4 * GRAIN];
        let mut now = old.clone();
        assert_eq!(changed_pieces(&old, &now), []);
        now[GRAIN] = 2;
        now[3 * GRAIN - 1] = 2;
        assert_eq!(changed_pieces(&old, &now), [(GRAIN, 3 * GRAIN)]);
        now.push(3);
        assert_eq!(changed_pieces(&old, &now), [(GRAIN, 3 * GRAIN), (4 * GRAIN, 4 * GRAIN + 1)]);
        assert_eq!(changed_pieces(&old, &old[..5]), [], "shorter");
        assert_eq!(
            changed_pieces(&[], &vec![0; MAX_PAYLOAD + 1]),
            [(0, MAX_PAYLOAD), (MAX_PAYLOAD, MAX_PAYLOAD + 1)]
        );
    }

    proptest! {
        #[test]
        fn pieces_make_old_into_new(old in prop::collection::vec(0u8..3, 0..3000), now in prop::collection::vec(0u8..3, 0..3000)) {
            let mut copy = old.clone();
            for (from, to) in changed_pieces(&old, &now) {
                prop_assert!(from <= copy.len(), "a piece begins within, or at the end, of what is there");
                copy.resize(copy.len().max(to), 0);
                copy[from..to].copy_from_slice(&now[from..to]);
            }
            copy.truncate(now.len());
            prop_assert_eq!(copy, now);
        }
    }
}
