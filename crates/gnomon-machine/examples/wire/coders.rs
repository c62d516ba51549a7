//! The coders, each of which is told the same pages in the same order and counts the bytes it would send for them.
//!
//! A peer's page has QEMU's header of 8 bytes: a guest has one block of RAM that matters, so its name is not said again;
//! a page of zeroes is that and one byte. Every peer is taken at its best: XBZRLE's cache holds all of the guest, and
//! zstd's window goes on from page to page, as in QEMU's multifd.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use gnomon_machine::page::{
    Said, SentPages,
    batch::{Writer, pack},
    is_zero,
};
use gnomon_proto::frame::HEADER_LEN;
use gnomon_terms::{Bytes, PageNumber};

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
    pub old: &'a Page,
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
    pub fn take(&mut self, pages: &[Written<'_>]) {
        let began = Instant::now();
        self.bytes += self.coder.checkpoint(pages);
        self.took += began.elapsed();
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
        Box::new(Ours { sent, packs })
    };
    let all: [(&'static str, Box<dyn Coder>); 6] = [
        ("gnomon", ours(true)),
        ("gnomon-unpacked", ours(false)),
        ("raw", Box::new(Raw)),
        ("xbzrle", Box::new(Xbzrle)),
        ("zstd-1", Box::new(Zstd::new(1))),
        ("zstd-3", Box::new(Zstd::new(3))),
    ];
    all.map(|(name, coder)| Contender { name, coder, bytes: 0, took: Duration::ZERO }).into()
}

/// As `primary/sender.rs` says it.
struct Ours {
    sent: SentPages,
    packs: bool,
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
                bytes += said(&mut writer, self.packs);
            }
        }
        bytes + said(&mut writer, self.packs)
    }
}

fn said(writer: &mut Writer, packs: bool) -> u64 {
    if writer.is_empty() {
        return 0;
    }
    let (body, _) = writer.take();
    let short = if packs { pack(&body) } else { None };
    FRAME + short.map_or(body.len(), |short| short.len()) as u64
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

struct Xbzrle;

impl Coder for Xbzrle {
    fn checkpoint(&mut self, pages: &[Written<'_>]) -> u64 {
        let of = |written: &Written<'_>| match xbzrle::encode(written.old, written.new) {
            _ if is_zero(written.new) => ZERO,
            Some(delta) if delta.is_empty() => 0,
            Some(delta) => XBZRLE_HEADER + delta.len() as u64,
            None => plain(written.new),
        };
        pages.iter().map(of).sum()
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
