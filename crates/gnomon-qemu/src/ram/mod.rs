//! Guest RAM that gnomon makes: a memfd that QEMU maps and we map too.
//!
//! ```text
//!             GuestRam::create ──► memfd ◄── mem-path=/proc/self/fd/N ── QEMU   (shared: the guest's own RAM)
//!                                   ▲ ▲  ◄── the same, share=off ─────── QEMU   (forked: copy on write)
//!  daemon restarted: open_in ───────┘ └── map, map_writable ── RamView, RamWriter
//! ```
//!
//! The block has the same name ([`RAM_ID`]) in every QEMU that gnomon starts, because that name is in the migration
//! stream and both sides must agree on it. The memfd is sealed against changing its size, so that a mapping of ours
//! can never fault, whatever QEMU does to its descriptor.
//!
//! Guest memory changes while we look: nothing here lends out a `&[u8]` of it. Bytes are copied out and in.
//!
//! Source: memfd_create(2), proc_pid_fd(5); QEMU documentation, `-object memory-backend-file`.

mod error;
mod memory;
mod view;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use gnomon_terms::{Bytes, PAGE_SIZE, PageCount};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create},
    io::Errno,
};
use serde::{Deserialize, Serialize};

pub use error::RamError;
pub use memory::GuestMemory;
pub use view::{Page, RamView, RamWriter};

/// What the guest's RAM is called in QEMU, and with it in every migration stream.
pub const RAM_ID: &str = "ram0";

/// The longest name of a memfd: the kernel takes 249 bytes.
const NAME_LIMIT: usize = 200;

/// RAM of one guest, as a memfd. Dropping it closes our descriptor; the memory lasts for as long as anybody has it
/// open or mapped.
#[derive(Debug)]
pub struct GuestRam {
    file: File,
    size: u64,
    inode: u64,
}

/// How a QEMU maps RAM of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RamSharing {
    /// It is the guest's RAM: what the guest writes is in the memfd.
    Shared,
    /// Copy on write: what the guest writes stays in its own QEMU. A page that it has not written yet shows the memfd
    /// as it is at that moment, so nobody may write the memfd while such a QEMU lives. Its own state cannot be
    /// captured without RAM: QEMU leaves out shared RAM only.
    Forked,
}

/// Memory of ours lent to a QEMU that is about to be started.
#[derive(Clone, Copy, Debug)]
pub struct RamLoan<'a> {
    /// What it begins with, then a piece for each of its DIMMs.
    pub parts: &'a [GuestRam],
    /// How it is mapped.
    pub sharing: RamSharing,
    /// Whether QEMU fills its page tables before the guest runs, and allocates what nobody has yet: then the guest never
    /// waits for a page. 0.2 s for a GiB that is allocated, several times that for one that is not.
    pub populate: bool,
}

/// What is recorded of a running QEMU's RAM, to open it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRecord {
    /// The block's name in QEMU and in the migration stream.
    pub id: String,
    /// The descriptor within QEMU.
    pub fd: i32,
    /// The memfd's inode: the same memory has the same one in every process, while this boot lasts.
    pub inode: u64,
    /// In bytes.
    pub size: u64,
    /// How it is mapped.
    pub sharing: RamSharing,
}

impl GuestRam {
    /// Makes RAM of `size` bytes, all zero, none of it allocated yet. `name` is seen in `/proc/PID/maps` only.
    /// `size` is a multiple of 4 KiB and not zero.
    pub fn create(name: &str, size: Bytes) -> Result<GuestRam, RamError> {
        if size.0 == 0 || !size.0.is_multiple_of(PAGE_SIZE) {
            return Err(RamError::BadSize { size });
        }
        let failed = |e: Errno| RamError::Create { size, source: e.into() };
        let name: String = name.chars().filter(|c| *c != '\0').take(NAME_LIMIT / 4).collect();
        let memfd = anonymous(&name).map_err(failed)?;
        ftruncate(&memfd, size.0).map_err(failed)?;
        // The last one seals the seals: nobody can forbid writing, or make it grow under QEMU.
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(failed)?;
        GuestRam::over(memfd, Path::new("/proc/self/fd"))
    }

    /// Takes a memfd that is there already, such as one that was populated ahead of need. Refused when it can shrink or
    /// grow, or no guest has RAM of its size.
    pub fn of_memfd(memfd: OwnedFd) -> Result<GuestRam, RamError> {
        let ram = GuestRam::over(memfd, Path::new("/proc/self/fd"))?;
        ram.refuse_if_it_can_shrink()?;
        match ram.size > 0 && ram.size.is_multiple_of(PAGE_SIZE) {
            true => Ok(ram),
            false => Err(RamError::BadSize { size: ram.size() }),
        }
    }

    /// Opens the RAM that a record tells of, through the process that has it: for a daemon that was restarted. The
    /// caller has made sure that `pid` still is that process.
    pub fn open_in(pid: i32, record: &RamRecord) -> Result<GuestRam, RamError> {
        let told = fd_dir(pid).join(record.fd.to_string());
        if let Ok(ram) = GuestRam::open(&told)
            && ram.inode == record.inode
        {
            return Ok(ram);
        }
        // QEMU opens the file anew, so the memory is there under another number when the first was closed.
        let found = find(pid, |memfd| memfd.inode == record.inode)?;
        let memfd = found.first().ok_or_else(|| RamError::NotThere { pid, what: record.id.clone() })?;
        GuestRam::open(&memfd.path)
    }

    /// Opens the RAM of a QEMU that gnomon did not start: the one memfd whose name (the word after `memfd:` in
    /// `/proc/PID/fd`) is `name`, which is `memory-backend-memfd` for QEMU's own. Refused when there are several.
    pub fn open_named(pid: i32, name: &str) -> Result<GuestRam, RamError> {
        let mut found = find(pid, |memfd| memfd.name == name)?;
        let mut inodes: Vec<u64> = found.iter().map(|memfd| memfd.inode).collect();
        inodes.sort_unstable();
        inodes.dedup();
        match (inodes.len(), found.pop()) {
            (1, Some(memfd)) => GuestRam::open(&memfd.path),
            (0, _) | (_, None) => Err(RamError::NotThere { pid, what: name.to_string() }),
            (count, _) => Err(RamError::Several { pid, what: name.to_string(), count }),
        }
    }

    /// Opens memory at a path of `/proc/PID/fd`, where another may be by now.
    pub(crate) fn open_inode(path: &Path, inode: u64) -> Result<GuestRam, RamError> {
        let ram = GuestRam::open(path)?;
        match ram.inode == inode {
            true => Ok(ram),
            false => Err(RamError::Open { path: path.to_path_buf(), source: io::ErrorKind::NotFound.into() }),
        }
    }

    fn open(path: &Path) -> Result<GuestRam, RamError> {
        let file = File::options().read(true).write(true).open(path);
        GuestRam::over(file.map_err(|source| RamError::Open { path: path.to_path_buf(), source })?, path)
    }

    fn over(file: impl Into<File>, path: &Path) -> Result<GuestRam, RamError> {
        let file = file.into();
        let metadata = file.metadata().map_err(|source| RamError::Open { path: path.to_path_buf(), source })?;
        Ok(GuestRam { size: metadata.len(), inode: metadata.ino(), file })
    }

    /// Its size.
    pub fn size(&self) -> Bytes {
        Bytes(self.size)
    }

    /// How many pages it has.
    pub fn pages(&self) -> PageCount {
        PageCount(self.size / PAGE_SIZE)
    }

    /// Its inode, by which it is found in `/proc/PID/maps` and `/proc/PID/fd` of any process.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Bytes that are allocated: pages that somebody has touched. One system call.
    pub fn allocated(&self) -> io::Result<Bytes> {
        self.file.metadata().map(|metadata| Bytes(metadata.blocks() * 512))
    }

    /// Lends it to a QEMU as its guest's RAM.
    pub fn shared(&self) -> RamLoan<'_> {
        RamLoan { parts: std::slice::from_ref(self), sharing: RamSharing::Shared, populate: false }
    }

    /// Lends it to a QEMU as the origin of a private copy; see [`RamSharing::Forked`].
    pub fn forked(&self) -> RamLoan<'_> {
        RamLoan { parts: std::slice::from_ref(self), sharing: RamSharing::Forked, populate: false }
    }

    /// Maps all of it to be read. Refused when it is not sealed against shrinking.
    pub fn map(&self) -> Result<RamView, RamError> {
        RamView::over(std::slice::from_ref(self), false)
    }

    /// Maps all of it to be read and written. Refused when it is not sealed against shrinking.
    pub fn map_writable(&self) -> Result<RamWriter, RamError> {
        RamView::over(std::slice::from_ref(self), true).map(RamWriter::over)
    }

    /// A page beyond the end of a file kills whoever touches it.
    fn refuse_if_it_can_shrink(&self) -> Result<(), RamError> {
        match fcntl_get_seals(&self.file) {
            Ok(seals) if seals.contains(SealFlags::SHRINK) => Ok(()),
            Ok(_) | Err(_) => Err(RamError::NotSealed { inode: self.inode }),
        }
    }
}

impl AsFd for GuestRam {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl RamLoan<'_> {
    /// The same, with all its pages there before the guest runs: for memory that is allocated. QEMU greets when it has
    /// them all, so a large one that is not may come too late for [`crate::Qemu::launch`] on a busy host.
    pub fn populated(self) -> Self {
        RamLoan { populate: true, ..self }
    }

    /// What is to be recorded of a QEMU that was started with it: what it begins with. DIMMs come and go, and are found
    /// by what QEMU tells of them.
    pub(crate) fn record(&self) -> Option<RamRecord> {
        let boot = self.parts.first()?;
        Some(RamRecord {
            id: RAM_ID.to_string(),
            fd: boot.file.as_raw_fd(),
            inode: boot.inode,
            size: boot.size,
            sharing: self.sharing,
        })
    }
}

/// A memfd that cannot be executed, where the kernel knows that flag (6.3 and newer, some insist on it).
fn anonymous(name: &str) -> Result<rustix::fd::OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        made => made,
    }
}

fn fd_dir(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/fd"))
}

/// A descriptor of a process that is a memfd.
pub(crate) struct Memfd {
    /// The name it was made with.
    pub(crate) name: String,
    /// Its inode.
    pub(crate) inode: u64,
    /// In bytes.
    pub(crate) size: u64,
    /// Below `/proc/PID/fd`.
    pub(crate) path: PathBuf,
}

/// Every descriptor of a process that is a memfd. Descriptors come and go while we look: one that cannot be looked at is
/// none.
pub(crate) fn memfds(pid: i32) -> Result<Vec<Memfd>, RamError> {
    let dir = fd_dir(pid);
    let entries = fs::read_dir(&dir).map_err(|source| RamError::Open { path: dir.clone(), source })?;
    let look = |path: PathBuf| {
        let (link, metadata) = (fs::read_link(&path).ok()?, fs::metadata(&path).ok()?);
        let name = link.to_str()?.strip_prefix("/memfd:")?.strip_suffix(" (deleted)")?.to_string();
        Some(Memfd { name, inode: metadata.ino(), size: metadata.len(), path })
    };
    Ok(entries.flatten().filter_map(|entry| look(entry.path())).collect())
}

fn find(pid: i32, fits: impl Fn(&Memfd) -> bool) -> Result<Vec<Memfd>, RamError> {
    let mut found = memfds(pid)?;
    found.retain(fits);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use gnomon_terms::PageNumber;

    use super::*;

    const SIZE: Bytes = Bytes(64 << 10);

    fn own_pid() -> i32 {
        std::process::id() as i32
    }

    #[test]
    fn ram_is_zero_sealed_and_not_allocated() {
        let ram = GuestRam::create("web", SIZE).expect("made");
        assert_eq!((ram.size(), ram.pages()), (SIZE, PageCount(16)));
        assert_eq!(ram.allocated().expect("told"), Bytes(0));
        assert_eq!(ftruncate(&ram.file, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&ram.file, SIZE.0 * 2), Err(Errno::PERM));
        assert_eq!(fcntl_add_seals(&ram.file, SealFlags::WRITE), Err(Errno::PERM));
        let mut page = [1; 4096];
        ram.map().expect("mapped").read_page(PageNumber(15), &mut page).expect("there");
        assert_eq!(page, [0; 4096]);
    }

    #[test]
    fn sizes_that_no_guest_has_are_refused() {
        for size in [0, 1, 4095, 4097] {
            let error = GuestRam::create("web", Bytes(size)).expect_err("no size");
            assert!(matches!(error, RamError::BadSize { .. }), "{error}");
        }
    }

    #[test]
    fn ram_is_found_again_through_its_process() {
        let ram = GuestRam::create("found", SIZE).expect("made");
        ram.map_writable().expect("mapped").write_at(5, b"here").expect("within");
        let told = ram.shared().record().expect("told");
        let moved = RamRecord { fd: -1, ..told.clone() };
        for record in [told, moved] {
            let again = GuestRam::open_in(own_pid(), &record).expect("found");
            let mut bytes = [0; 4];
            again.map().expect("mapped").read_at(5, &mut bytes).expect("within");
            assert_eq!((&bytes, again.inode()), (b"here", ram.inode()));
        }
    }

    #[test]
    fn ram_that_is_not_there_is_told() {
        let told = GuestRam::create("x", SIZE).expect("made").shared().record().expect("told");
        let record = RamRecord { inode: u64::MAX, ..told };
        let error = GuestRam::open_in(own_pid(), &record).expect_err("no such inode");
        assert!(matches!(error, RamError::NotThere { .. }), "{error}");
        let error = GuestRam::open_in(i32::MAX, &record).expect_err("no such process");
        assert!(matches!(error, RamError::Open { .. }), "{error}");
    }

    #[test]
    fn foreign_ram_is_found_by_its_name_if_it_is_the_only_one() {
        let name = "gnomon-test-foreign";
        let one = GuestRam::create(name, SIZE).expect("made");
        let again = one.file.try_clone().expect("another descriptor of the same");
        assert_eq!(GuestRam::open_named(own_pid(), name).expect("found").inode(), one.inode());
        let _two = GuestRam::create(name, SIZE).expect("made");
        let error = GuestRam::open_named(own_pid(), name).expect_err("which one?");
        assert!(matches!(error, RamError::Several { count: 2, .. }), "{error}");
        drop(again);
    }

    #[test]
    fn memory_that_can_shrink_is_not_mapped() {
        let memfd = memfd_create("loose", MemfdFlags::CLOEXEC).expect("made");
        ftruncate(&memfd, SIZE.0).expect("sized");
        let ram = GuestRam::over(memfd.try_clone().expect("again"), Path::new("loose")).expect("looked at");
        assert!(matches!(ram.map(), Err(RamError::NotSealed { .. })));
        assert!(matches!(GuestRam::of_memfd(memfd), Err(RamError::NotSealed { .. })));
        let sealed = GuestRam::create("sealed", SIZE).expect("made");
        let taken = GuestRam::of_memfd(sealed.file.try_clone().expect("again").into()).expect("taken");
        assert_eq!((taken.size(), taken.inode()), (SIZE, sealed.inode()));
    }
}
