//! The coders, each of which is told the same pages in the same order and counts the bytes it would send for them.
//!
//! A peer's page has QEMU's header of 8 bytes: a guest has one block of RAM that matters, so its name is not said again;
//! a page of zeroes is that and one byte. XBZRLE has as much memory for its cache as ours has for what it remembers, and
//! zstd's window goes on from page to page and from checkpoint to checkpoint, as in QEMU's multifd.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use gnomon_machine::page::{Said, SentPages, batch::Writer, is_zero, pack::Packer};
use gnomon_proto::frame::HEADER_LEN;
use gnomon_terms::{Bytes, PAGE_SIZE, PageNumber};

use super::xbzrle::{self, Page};

/// Offset and flags.
const HEADER: u64 = 8;
/// Which encoding it is, and how long.
const XBZRLE_HEADER: u64 = HEADER + 3;
/// And the byte that fills it.
const ZERO: u64 = HEADER + 1;
/// Pages between two flushes of a multifd channel.
const PACKET: usize = 128;
/// Stream, epoch, checkpoint, records and flags in the header of a batch of pages.
const FRAME: u64 = HEADER_LEN as u64;

/// One page that was written.
pub struct Written<'a> {
    pub page: PageNumber,
    pub new: &'a Page,
}

/// Counts what would be sent.
pub trait Coder {
    /// A checkpoint's pages, in order.
    fn checkpoint(&mut self, pages: &[Written<'_>]) -> u64;
}

/// A coder, its name, and what it has come to.
pub struct Contender {
    pub name: &'static str,
    coder: Box<dyn Coder>,
    pub bytes: u64,
    pub took: Duration,
}

impl Contender {
    /// Another checkpoint.
    pub fn take(&mut self, pages: &[Written<'_>]) {
        let began = Instant::now();
        self.bytes += self.coder.checkpoint(pages);
        self.took += began.elapsed();
    }
}

impl Contender {
    /// Counts from here on.
    pub fn start(&mut self) {
        (self.bytes, self.took) = (0, Duration::ZERO);
    }
}

/// Ours first, as on a slow link and as on a fast one, then the peers. `first` is all of the guest, once: what each is told
/// before it is counted.
pub fn contenders(memory: Bytes, first: impl Fn(&mut dyn FnMut(PageNumber, &Page))) -> Vec<Contender> {
    let ours = |packs: bool| {
        let mut sent = SentPages::new(memory);
        first(&mut |page, now| {
            sent.say(page, now);
        });
        Box::new(Ours { sent, packer: packs.then(Packer::default) })
    };
    let all: [(&'static str, Box<dyn Coder>); 6] = [
        ("gnomon", ours(true)),
        ("gnomon-unpacked", ours(false)),
        ("raw", Box::new(Raw)),
        ("xbzrle", Box::new(Xbzrle::new(memory))),
        ("zstd-1", Box::new(Zstd::new(1))),
        ("zstd-3", Box::new(Zstd::new(3))),
    ];
    all.map(|(name, coder)| Contender { name, coder, bytes: 0, took: Duration::ZERO }).into()
}

/// As `primary/sender.rs` says it.
struct Ours {
    sent: SentPages,
    packer: Option<Packer>,
}

impl Coder for Ours {
    fn checkpoint(&mut self, pages: &[Written<'_>]) -> u64 {
        let mut writer = Writer::default();
        let mut bytes = 0;
        for written in pages {
            if let Said::Record(coding) = self.sent.say(written.page, written.new) {
                writer.push(written.page, coding);
            }
            if writer.is_full() {
                bytes += self.said(&mut writer);
            }
        }
        bytes + self.said(&mut writer)
    }
}

impl Ours {
    fn said(&mut self, writer: &mut Writer) -> u64 {
        if writer.is_empty() {
            return 0;
        }
        let (body, _) = writer.take();
        let packed = self.packer.as_mut().and_then(|packer| packer.pack(&body));
        FRAME + packed.map_or(body.len(), |packed| packed.len()) as u64
    }
}

struct Raw;

impl Coder for Raw {
    fn checkpoint(&mut self, pages: &[Written<'_>]) -> u64 {
        pages.iter().map(|written| plain(written.new)).sum()
    }
}

fn plain(page: &Page) -> u64 {
    if is_zero(page) { ZERO } else { HEADER + page.len() as u64 }
}

/// With QEMU's cache: each page has one place in it, which another page gets when it has not been used for two rounds. A
/// page that is not in it is sent whole; so is each at its first time, for the cache begins empty.
/// Source: QEMU, docs/xbzrle.txt ("Cache update strategy").
struct Xbzrle {
    slots: Vec<Option<Slot>>,
    round: u64,
}

struct Slot {
    page: PageNumber,
    used: u64,
    content: Box<Page>,
}

/// Rounds for which a page keeps its place.
const LIFETIME: u64 = 2;

impl Xbzrle {
    /// A power of two of places.
    fn new(memory: Bytes) -> Xbzrle {
        let places = (memory.0 / PAGE_SIZE + 1).next_power_of_two() / 2;
        Xbzrle { slots: (0..places).map(|_| None).collect(), round: 0 }
    }

    fn page(&mut self, page: PageNumber, now: &Page) -> u64 {
        let at = (page.0 as usize) & (self.slots.len() - 1);
        let round = self.round;
        match &mut self.slots[at] {
            Some(slot) if slot.page == page => {
                let delta = xbzrle::encode(&slot.content, now);
                slot.used = round;
                slot.content.copy_from_slice(now);
                match delta {
                    _ if is_zero(now) => ZERO,
                    Some(delta) if delta.is_empty() => 0,
                    Some(delta) => XBZRLE_HEADER + delta.len() as u64,
                    None => plain(now),
                }
            }
            Some(slot) if slot.used + LIFETIME > round => plain(now),
            slot => {
                *slot = Some(Slot { page, used: round, content: Box::new(*now) });
                plain(now)
            }
        }
    }
}

impl Coder for Xbzrle {
    fn checkpoint(&mut self, pages: &[Written<'_>]) -> u64 {
        self.round += 1;
        pages.iter().map(|written| self.page(written.page, written.new)).sum()
    }
}

/// One stream for the whole of the migration; in memory, a write to it does not fail.
struct Zstd(zstd::stream::write::Encoder<'static, Counted>);

impl Zstd {
    fn new(level: i32) -> Zstd {
        Zstd(zstd::stream::write::Encoder::new(Counted(0), level).expect("a level that zstd has"))
    }
}

impl Coder for Zstd {
    fn checkpoint(&mut self, pages: &[Written<'_>]) -> u64 {
        let before = self.0.get_ref().0;
        let mut headers = 0;
        for packet in pages.chunks(PACKET) {
            for written in packet {
                if is_zero(written.new) {
                    headers += ZERO;
                } else {
                    headers += HEADER;
                    self.0.write_all(written.new).expect("memory");
                }
            }
            self.0.flush().expect("memory");
        }
        self.0.get_ref().0 - before + headers
    }
}

/// Counts what is written.
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
