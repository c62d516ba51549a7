//! QEMU's migration stream, read to know what is in it; nothing is loaded. Used to check a blob before a QEMU is given
//! it, and to compare the devices of two machines before one takes over from the other.
//!
//! All numbers are big endian. Names have a length byte before them.
//!
//! ```text
//! stream   "QEVM" u32 version=3 │ configuration? │ section* │ 00 │ description?
//! configuration   07 u32 length, machine type │ subsection*
//! subsection      05 name u32 version, then by name:
//!                    …/capabilities      u32 count, {name}*
//!                    …/target-page-bits  u32
//!                    …/uuid              16 bytes
//! section  01 start  u32 id, name, u32 instance, u32 version, payload │ footer     ("ram" is the one we know)
//!          02 part   u32 id, payload │ footer
//!          03 end    u32 id, payload │ footer
//!          04 full   u32 id, name, u32 instance, u32 version, payload │ footer     (a device)
//!          08 command  u16 which, u16 length, bytes
//! footer   7e u32 id
//! description     06 u32 length, JSON: the fields of each full section with their sizes, in the order of the sections
//! ```
//!
//! A full section does not tell its length: only the description at the very end does. So everything up to the first
//! device is read as it comes (RAM may be hundreds of gigabytes and is passed over, page by page), and the rest, which
//! is the state of devices, is held in memory up to a limit, read from its end and then walked from its beginning.
//! That walk must meet every footer: a description that does not fit its stream is refused.
//!
//! Source: QEMU `docs/devel/migration`, `migration/savevm.c`, `migration/ram.c`; QEMU `scripts/analyze-migration.py`
//! for the description's meaning. Compared with what 7.2.22 and 10.0.2 write for pc and q35.

mod description;
mod error;
mod inventory;
mod ram;
mod source;

use std::io::Read;

pub use error::StreamError;
pub use inventory::{DeviceSection, Difference, Inventory, RamBlock};

use description::{Described, description};
use ram::RamWalk;
use source::Source;

/// The magic number at the beginning of every stream.
const MAGIC: &[u8; 4] = b"QEVM";

/// The only version of the format in use since 2005.
const VERSION: u32 = 3;

/// The longest machine type. Real ones have less than 40 bytes.
const MACHINE_LIMIT: u32 = 256;

/// The most capabilities. QEMU 10.0 has 22.
const CAPABILITY_LIMIT: u32 = 256;

/// The most bytes from the first device on: the devices of a guest with a hundred disks have 5 MB, one of a hundred
/// virtual functions of a graphics card may have a gigabyte and is not ours to hold.
pub const DEVICES_LIMIT: u64 = 64 << 20;

/// The most devices. A guest has thirty, and a few for each disk and card.
const DEVICE_LIMIT: u64 = 8192;

/// What a byte at the beginning of a section says it is.
mod tag {
    pub(super) const END: u8 = 0x00;
    pub(super) const START: u8 = 0x01;
    pub(super) const PART: u8 = 0x02;
    pub(super) const LAST: u8 = 0x03;
    pub(super) const FULL: u8 = 0x04;
    pub(super) const SUBSECTION: u8 = 0x05;
    pub(super) const CONFIGURATION: u8 = 0x07;
    pub(super) const COMMAND: u8 = 0x08;
    pub(super) const FOOTER: u8 = 0x7e;
}

/// Reads a whole stream, to its end, and tells what is in it. Allocates [`DEVICES_LIMIT`] bytes at most, and a few for
/// each name; blocks as long as `from` does.
pub fn read_stream(from: impl Read) -> Result<Inventory, StreamError> {
    let mut source = Source::new(from);
    let mut walk = Walk::default();
    walk.header(&mut source)?;
    let mut none = Vec::new().into_iter();
    match walk.sections(&mut source, &mut none, Reach::FirstDevice)? {
        // A stream without a device may still describe that there is none.
        Met::End => walk.inventory.length = source.drain(DEVICES_LIMIT)?,
        Met::Device => walk.devices(source)?,
    }
    Ok(walk.finish())
}

/// How far to walk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// To the first device, whose tag is consumed.
    FirstDevice,
    /// To the end.
    End,
}

/// Where a walk stopped.
enum Met {
    Device,
    End,
}

/// What has been learned so far.
#[derive(Default)]
struct Walk {
    inventory: Inventory,
    ram: RamWalk,
    ram_section: Option<u32>,
}

impl Walk {
    fn header<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), StreamError> {
        let mut magic = [0; 4];
        source.fill(&mut magic, "the magic number")?;
        let version = if &magic == MAGIC { source.u32("the version")? } else { 0 };
        if version != VERSION {
            return Err(StreamError::NoStream { magic, version });
        }
        if source.peek()? == Some(tag::CONFIGURATION) {
            source.u8("the configuration")?;
            let length = source.u32("the machine type's length")?;
            source.limit("the machine type's length", u64::from(length), u64::from(MACHINE_LIMIT))?;
            self.inventory.machine = source.text(length as usize, "the machine type")?;
        }
        while source.peek()? == Some(tag::SUBSECTION) {
            self.subsection(source)?;
        }
        Ok(())
    }

    fn subsection<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), StreamError> {
        source.u8("a subsection")?;
        let name = source.name("a subsection's name")?;
        source.u32("a subsection's version")?;
        match name.as_str() {
            "configuration/capabilities" => {
                let count = source.u32("the number of capabilities")?;
                source.limit("the number of capabilities", u64::from(count), u64::from(CAPABILITY_LIMIT))?;
                for _ in 0..count {
                    self.inventory.capabilities.push(source.name("a capability")?);
                }
            }
            "configuration/target-page-bits" => source.skip(4, "the page size")?,
            "configuration/uuid" => source.skip(16, "the UUID")?,
            _ => return Err(StreamError::Unknown { at: source.at(), what: format!("the subsection '{name}'") }),
        }
        Ok(())
    }

    /// Sections one after another. `described` has the devices that are to come; with [`Reach::FirstDevice`] it is not
    /// asked.
    fn sections<R: Read>(
        &mut self,
        source: &mut Source<R>,
        described: &mut std::vec::IntoIter<Described>,
        reach: Reach,
    ) -> Result<Met, StreamError> {
        loop {
            match source.u8("a section")? {
                tag::END => return Ok(Met::End),
                tag::START => self.start(source)?,
                tag::PART | tag::LAST => self.part(source)?,
                tag::FULL if reach == Reach::FirstDevice => return Ok(Met::Device),
                tag::FULL => self.device(source, described)?,
                tag::COMMAND => {
                    source.skip(2, "a command")?;
                    let length = source.u16("a command's length")?;
                    source.skip(u64::from(length), "a command")?;
                }
                other => {
                    return Err(StreamError::Unknown {
                        at: source.at() - 1,
                        what: format!("a section of kind {other}"),
                    });
                }
            }
        }
    }

    /// The section that lists the RAM blocks, and the only live one whose payload is known here.
    fn start<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), StreamError> {
        let head = Head::read(source)?;
        if (head.name.as_str(), head.version) != ("ram", 4) {
            let what = format!("the live section '{}' of version {}", head.name, head.version);
            return Err(StreamError::Unknown { at: source.at(), what });
        }
        self.ram_section = Some(head.id);
        let with_address = self.inventory.leaves_out_shared_ram();
        self.ram.section(source, &mut self.inventory.ram, with_address)?;
        footer(source, head.id)
    }

    fn part<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), StreamError> {
        let id = source.u32("a section's id")?;
        if self.ram_section != Some(id) {
            return Err(StreamError::Unknown { at: source.at(), what: format!("a part of section {id}") });
        }
        let with_address = self.inventory.leaves_out_shared_ram();
        self.ram.section(source, &mut self.inventory.ram, with_address)?;
        footer(source, id)
    }

    /// Everything from the first device on, whose tag has been read.
    fn devices<R: Read>(&mut self, source: Source<R>) -> Result<(), StreamError> {
        let begun = source.at() - 1;
        let mut rest = vec![tag::FULL];
        source.rest(&mut rest, DEVICES_LIMIT)?;
        self.inventory.length = begun + rest.len() as u64;
        let (sections, described) = description(&rest, begun)?;
        let mut inner = Source::beginning_at(sections, begun);
        let mut described = described.into_iter();
        self.sections(&mut inner, &mut described, Reach::End)?;
        match (inner.at() == begun + sections.len() as u64, described.next()) {
            (true, None) => Ok(()),
            (_, Some(left)) => Err(StreamError::NotAsDescribed { at: inner.at(), what: left.title() }),
            (false, None) => Err(StreamError::NotAsDescribed { at: inner.at(), what: "the end".into() }),
        }
    }

    fn device<R: Read>(
        &mut self,
        source: &mut Source<R>,
        described: &mut std::vec::IntoIter<Described>,
    ) -> Result<(), StreamError> {
        let head = Head::read(source)?;
        let described = described.next().filter(|d| d.name == head.name && d.instance_id == head.instance);
        let Some(length) = described.map(|d| d.length()) else {
            return Err(StreamError::NotAsDescribed { at: source.at(), what: head.title() });
        };
        source.skip(length, "a device")?;
        footer(source, head.id)?;
        source.limit("the number of devices", self.inventory.devices.len() as u64 + 1, DEVICE_LIMIT)?;
        let Head { name, instance, version, .. } = head;
        self.inventory.devices.push(DeviceSection { name, instance, version, length });
        Ok(())
    }

    /// A shared block was left out if the stream may leave some out and no page of it came.
    fn finish(mut self) -> Inventory {
        let may_leave_out = self.inventory.leaves_out_shared_ram();
        for block in &mut self.inventory.ram {
            block.left_out = may_leave_out && block.pages == 0;
        }
        self.inventory
    }
}

/// What a start or full section begins with.
struct Head {
    id: u32,
    name: String,
    instance: u32,
    version: u32,
}

impl Head {
    fn read<R: Read>(source: &mut Source<R>) -> Result<Head, StreamError> {
        Ok(Head {
            id: source.u32("a section's id")?,
            name: source.name("a section's name")?,
            instance: source.u32("a section's instance")?,
            version: source.u32("a section's version")?,
        })
    }

    fn title(&self) -> String {
        format!("'{}' instance {}", self.name, self.instance)
    }
}

fn footer<R: Read>(source: &mut Source<R>, id: u32) -> Result<(), StreamError> {
    let at = source.at();
    let (tag, found) = (source.u8("a footer")?, source.u32("a footer")?);
    match (tag, found) == (tag::FOOTER, id) {
        true => Ok(()),
        false => Err(StreamError::NoFooter { at, section: id }),
    }
}

#[cfg(test)]
mod tests;
