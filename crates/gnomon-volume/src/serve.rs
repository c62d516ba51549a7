//! Serving: what stands between every front and the disks.
//!
//! A front opens an export by name and gets a [`Session`]. Each request is admitted once ([`Session::admit`]:
//! range, read-only, tap) and becomes a [`Span`]; only a span can be read or written, so no front can forget the
//! check. Each touch of the disk then passes the export's gate, which closes for good when the export is removed:
//!
//! ```text
//!            open ──remove──▶ closing (requests inside finish, new ones are refused) ──last one out──▶ closed
//! ```
//!
//! [`Exports::remove`] returns when the gate is closed: after it no request of any client touches the disk. This is
//! the fence a switchover relies on, so it never waits for a client: sending replies happens outside the gate.

mod gate;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use gnomon_terms::{Bytes, ErrorKind, Extent, Op, ResourceId};
use parking_lot::{Mutex, RwLock};

use self::gate::{Gate, Inside};
use crate::{
    disk::{Disk, DiskError, Segment},
    tap::Tap,
};

/// A disk under a name that fronts can open.
#[derive(Clone)]
pub struct Export {
    /// What clients ask for; at most [`NAME_LIMIT`] bytes.
    pub name: String,
    /// Told to people who list the exports.
    pub description: String,
    /// Where the bytes are.
    pub disk: Arc<dyn Disk>,
    /// True when every write is to be refused.
    pub read_only: bool,
    /// What the tap calls this disk.
    pub resource: ResourceId,
    /// Where accesses are noted, if anyone learns from them.
    pub tap: Option<Arc<Tap>>,
}

/// Longest name and description in bytes, as the NBD protocol limits strings.
pub const NAME_LIMIT: usize = 4096;

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// No export of this name.
    #[error("there is no export '{name}': list the exports for their names")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// An export of this name is there already.
    #[error("an export '{name}' is there already: remove it first or choose another name")]
    Taken {
        /// What was asked for.
        name: String,
    },
    /// The name or description cannot be told to clients.
    #[error("the export's {what} is {len} bytes long, more than {NAME_LIMIT}: choose a shorter one")]
    TooLong {
        /// name or description.
        what: &'static str,
        /// Its length.
        len: usize,
    },
    /// The export has been removed while the client was connected.
    #[error("the export was removed: connect to where the volume is served now")]
    Removed,
    /// The export does not accept writes.
    #[error("the export is read-only")]
    ReadOnly,
    /// The request reaches past the end.
    #[error("{len} bytes at {at} reach past the end of the disk ({size} bytes)")]
    OutOfRange {
        /// Offset asked for.
        at: u64,
        /// Length asked for.
        len: u64,
        /// Size of the disk.
        size: u64,
    },
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl ServeError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ServeError::Disk(error) => error.kind(),
            _ => ErrorKind::Refused,
        }
    }
}

/// Bytes of an admitted request: within the disk and allowed. Only [`Session::admit`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    at: u64,
    len: u64,
}

impl Span {
    /// Offset of the first byte.
    pub fn at(self) -> u64 {
        self.at
    }

    /// How many bytes.
    pub fn len(self) -> u64 {
        self.len
    }

    /// True for a request of zero bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The `len` bytes from `skip` on, cut where the span ends.
    pub fn part(self, skip: u64, len: u64) -> Span {
        let skip = skip.min(self.len);
        Span { at: self.at + skip, len: len.min(self.len - skip) }
    }
}

/// The exports of this host, shared by all fronts. Exports come and go while clients are connected.
#[derive(Default)]
pub struct Exports {
    open: RwLock<BTreeMap<String, Arc<Shelf>>>,
}

/// An export with what is needed to take it away again.
struct Shelf {
    export: Export,
    size: u64,
    gate: Gate,
    clients: Mutex<Clients>,
}

type HangUp = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Clients {
    next: u64,
    hang_up: HashMap<u64, HangUp>,
}

impl Exports {
    /// No exports yet.
    pub fn new() -> Arc<Exports> {
        Arc::new(Exports::default())
    }

    /// Offers `export` from now on.
    pub fn add(&self, export: Export) -> Result<(), ServeError> {
        for (what, len) in [("name", export.name.len()), ("description", export.description.len())] {
            if len > NAME_LIMIT {
                return Err(ServeError::TooLong { what, len });
            }
        }
        let mut open = self.open.write();
        if open.contains_key(&export.name) {
            return Err(ServeError::Taken { name: export.name });
        }
        let name = export.name.clone();
        let size = export.disk.size().0;
        open.insert(name, Arc::new(Shelf { export, size, gate: Gate::default(), clients: Mutex::default() }));
        Ok(())
    }

    /// Takes an export away: refuses new requests, hangs up on its clients, and returns when no request touches
    /// the disk any more. Blocks as long as the slowest disk operation under way.
    pub fn remove(&self, name: &str) -> Result<(), ServeError> {
        let shelf = self.open.write().remove(name).ok_or_else(|| ServeError::Unknown { name: name.to_string() })?;
        shelf.gate.close();
        for hang_up in shelf.clients.lock().hang_up.values() {
            hang_up();
        }
        shelf.gate.wait_until_empty();
        Ok(())
    }

    /// Names and descriptions, by name.
    pub fn list(&self) -> Vec<(String, String)> {
        let open = self.open.read();
        open.values().map(|shelf| (shelf.export.name.clone(), shelf.export.description.clone())).collect()
    }

    /// How many clients have the export open; 0 when there is no such export.
    pub fn clients(&self, name: &str) -> usize {
        self.open.read().get(name).map_or(0, |shelf| shelf.clients.lock().hang_up.len())
    }

    /// What is known of the export that `name` means: the one of this name, or the only one when `name` is empty.
    pub fn describe(&self, name: &str) -> Option<Facts> {
        let shelf = self.find(name)?;
        Some(Facts {
            name: shelf.export.name.clone(),
            description: shelf.export.description.clone(),
            size: Bytes(shelf.size),
            read_only: shelf.export.read_only,
        })
    }

    /// Opens the export that `name` means. `hang_up` is called when the export is removed; it must not block and
    /// should make the client's thread notice. The client is counted until the session is dropped.
    pub fn open(&self, name: &str, hang_up: impl Fn() + Send + Sync + 'static) -> Result<Session, ServeError> {
        let shelf = self.find(name).ok_or_else(|| ServeError::Unknown { name: name.to_string() })?;
        let mut clients = shelf.clients.lock();
        // Under the clients' lock: either `remove` sees this client in its list or the gate is seen closed here.
        if shelf.gate.is_closed() {
            return Err(ServeError::Removed);
        }
        let number = clients.next;
        clients.next += 1;
        clients.hang_up.insert(number, Box::new(hang_up));
        drop(clients);
        Ok(Session { shelf, number })
    }

    fn find(&self, name: &str) -> Option<Arc<Shelf>> {
        let open = self.open.read();
        match (open.get(name), open.len()) {
            (Some(shelf), _) => Some(shelf.clone()),
            (None, 1) if name.is_empty() => open.values().next().cloned(),
            _ => None,
        }
    }
}

/// What a front tells a client about an export before it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Its size.
    pub size: Bytes,
    /// True when writes are refused.
    pub read_only: bool,
}

/// One client's hold on an export. All calls block until done unless they say otherwise.
pub struct Session {
    shelf: Arc<Shelf>,
    number: u64,
}

impl Session {
    /// Name of the export.
    pub fn name(&self) -> &str {
        &self.shelf.export.name
    }

    /// Size of the disk.
    pub fn size(&self) -> Bytes {
        Bytes(self.shelf.size)
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.shelf.export.read_only
    }

    /// Whether the export has been removed; once true it stays so.
    pub fn is_removed(&self) -> bool {
        self.shelf.gate.is_closed()
    }

    /// Checks a request and notes it in the tap. The span it returns may then be carried out once.
    pub fn admit(&self, op: Op, at: u64, len: u64) -> Result<Span, ServeError> {
        let span = self.span(at, len)?;
        let export = &self.shelf.export;
        if op != Op::Read && export.read_only {
            return Err(ServeError::ReadOnly);
        }
        if let Some(tap) = &export.tap {
            tap.note(export.resource, Extent::touching(at, len), op);
        }
        Ok(span)
    }

    /// Checks a request that is no access of the guest's data (block status, a hint). Not noted.
    pub fn span(&self, at: u64, len: u64) -> Result<Span, ServeError> {
        let size = self.shelf.size;
        match at.checked_add(len) {
            Some(end) if end <= size => Ok(Span { at, len }),
            _ => Err(ServeError::OutOfRange { at, len, size }),
        }
    }

    /// Whether the span is on this host: reading it waits for no other.
    pub fn is_local(&self, span: Span) -> bool {
        self.shelf.export.disk.is_local(span.at, span.len)
    }

    /// Fills `into` if this needs no waiting; false when it does, and then `into` may hold anything.
    ///
    /// `into` must be as long as the span (here and in [`Session::read`] and [`Session::write`]).
    pub fn read_now(&self, span: Span, into: &mut [u8]) -> Result<bool, ServeError> {
        debug_assert_eq!(into.len() as u64, span.len);
        let _inside = self.shelf.gate.enter()?;
        Ok(self.shelf.export.disk.try_read_at(into, span.at)?)
    }

    /// Fills `into`.
    pub fn read(&self, span: Span, into: &mut [u8]) -> Result<(), ServeError> {
        debug_assert_eq!(into.len() as u64, span.len);
        let _inside = self.shelf.gate.enter()?;
        Ok(self.shelf.export.disk.read_at(into, span.at)?)
    }

    /// Replaces the span's bytes; durable after [`Session::flush`].
    pub fn write(&self, span: Span, data: &[u8]) -> Result<(), ServeError> {
        debug_assert_eq!(data.len() as u64, span.len);
        let _inside = self.writing()?;
        Ok(self.shelf.export.disk.write_at(data, span.at)?)
    }

    /// Makes the span read as zeroes; `punch` allows its storage to be given back.
    pub fn write_zeroes(&self, span: Span, punch: bool) -> Result<(), ServeError> {
        let _inside = self.writing()?;
        Ok(self.shelf.export.disk.write_zeroes(span.at, span.len, punch)?)
    }

    /// Gives the span up.
    pub fn discard(&self, span: Span) -> Result<(), ServeError> {
        let _inside = self.writing()?;
        Ok(self.shelf.export.disk.discard(span.at, span.len)?)
    }

    /// Makes everything acknowledged so far durable, whichever client wrote it.
    pub fn flush(&self) -> Result<(), ServeError> {
        let _inside = self.shelf.gate.enter()?;
        Ok(self.shelf.export.disk.flush()?)
    }

    /// Describes the span.
    pub fn segments(&self, span: Span) -> Result<Vec<Segment>, ServeError> {
        let _inside = self.shelf.gate.enter()?;
        Ok(self.shelf.export.disk.segments(span.at, span.len)?)
    }

    /// Brings the span near by reading it with `scratch` as the place to drop the bytes.
    pub fn prefetch(&self, span: Span, scratch: &mut [u8]) -> Result<(), ServeError> {
        let step = scratch.len() as u64;
        let mut done = 0;
        while step > 0 && done < span.len {
            let part = span.part(done, step);
            self.read(part, &mut scratch[..part.len as usize])?;
            done += part.len;
        }
        Ok(())
    }

    fn writing(&self) -> Result<Inside<'_>, ServeError> {
        match self.shelf.export.read_only {
            true => Err(ServeError::ReadOnly),
            false => self.shelf.gate.enter(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shelf.clients.lock().hang_up.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use gnomon_terms::{Event, Instant};

    use super::*;
    use crate::disk::FileDisk;

    fn session(read_only: bool) -> (tempfile::TempDir, Arc<Exports>, Arc<Tap>, Session) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let disk = Arc::new(FileDisk::create(&dir.path().join("disk"), Bytes(10_000)).expect("a new file"));
        let (exports, tap) = (Exports::new(), Arc::new(Tap::new(|| Instant::ORIGIN)));
        let (name, description, resource) = ("a".to_string(), String::new(), ResourceId(3));
        exports.add(Export { name, description, disk, read_only, resource, tap: Some(tap.clone()) }).unwrap();
        let session = exports.open("a", || {}).unwrap();
        (dir, exports, tap, session)
    }

    #[test]
    fn only_what_is_admitted_is_noted() {
        let (_dir, _exports, tap, session) = session(false);
        for (at, len) in [(0, 10_001), (10_000, 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(matches!(session.admit(Op::Read, at, len), Err(ServeError::OutOfRange { .. })), "{at}+{len}");
        }
        for (at, len) in [(0, 10_000), (9_999, 1), (10_000, 0)] {
            assert!(session.admit(Op::Write, at, len).is_ok(), "{at}+{len}");
        }
        let mut events = Vec::new();
        tap.drain(&mut events);
        let extents = events.iter().map(|event| match event {
            Event::Accessed(access) => (access.resource, access.extent),
            other => panic!("{other:?} was never noted"),
        });
        let r = ResourceId(3);
        let want = [(r, Extent::new(0, 3)), (r, Extent::new(2, 1)), (r, Extent::new(2, 0))];
        assert_eq!(extents.collect::<Vec<_>>(), want);
    }

    #[test]
    fn a_read_only_export_admits_reads() {
        let (_dir, _exports, _tap, session) = session(true);
        assert!(session.admit(Op::Read, 0, 1).is_ok());
        for op in [Op::Write, Op::Discard] {
            assert!(matches!(session.admit(op, 0, 1), Err(ServeError::ReadOnly)));
        }
        // Even a span that was admitted as a read cannot be written.
        let span = session.span(0, 1).unwrap();
        assert!(matches!(session.write(span, &[1]), Err(ServeError::ReadOnly)));
    }

    #[test]
    fn a_removed_export_is_closed_for_good() {
        let (_dir, exports, _tap, session) = session(false);
        let span = session.admit(Op::Write, 0, 1).unwrap();
        exports.remove("a").unwrap();
        assert!(session.is_removed());
        assert!(matches!(session.write(span, &[1]), Err(ServeError::Removed)));
        assert!(matches!(session.flush(), Err(ServeError::Removed)));
        assert!(exports.open("a", || {}).is_err());
    }

    #[test]
    fn parts_stay_inside() {
        let span = Span { at: 100, len: 10 };
        let table = [((0, 4), (100, 4)), ((8, 4), (108, 2)), ((10, 1), (110, 0)), ((99, 1), (110, 0))];
        for ((skip, len), (at, want)) in table {
            assert_eq!(span.part(skip, len), Span { at, len: want });
        }
    }
}
