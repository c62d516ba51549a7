//! One volume on this host: its files, its gate, and the engine of its move if there is one.
//!
//! ```text
//!   NAME.raw            the bytes
//!   NAME.raw.owed       what the peer lacks                 (outbox; while a move is on)
//!   NAME.raw.owed-NODE  what the standby at a node lacks    (outbox; while the guest is protected)
//!   NAME.raw.unflushed  what the peer may still lose        (unflushed; at a destination)
//!   NAME.raw.valid      which blocks are here               (blockmap; at a destination)
//!   NAME.raw.standby    what is not in the bytes yet        (journal; of a protected guest's standby)
//! ```
//!
//! This is where a role that was decided elsewhere becomes true: every change of role goes through one of the verbs
//! below, each of which leaves files and gate in step. They do not decide; the handover of the epoch does.

mod back;
mod standbys;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gnomon_proto::frame::Stream;
use gnomon_terms::{BlockCount, Bytes, Epoch, ErrorKind, Extent, ResourceId};
use parking_lot::Mutex;

use crate::{
    blockmap::{BlockMap, BootId, Lost, MapError},
    disk::{Disk, DiskError, FileDisk, Follower, LayeredDisk, Role, TrackedDisk, VolumeDisk},
    mover::Phase,
    outbox::Outbox,
    shadow::{Shadow, ShadowParts},
    stripes::Stripes,
    tap::Tap,
    unflushed::Unflushed,
    verify::Side,
};

/// How a guest's requests wait for the other host of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A read of blocks that are only there. When it ends, the guest sees an I/O error and QEMU pauses it.
    pub read: Duration,
    /// A flush, before mirroring is given up until the host returns.
    pub flush: Duration,
}

impl Default for Patience {
    /// A daemon restart takes about a second; a host's reboot some minutes; a guest's own disk timeout is 30 s to
    /// never on virtio. So reads wait five minutes, and flushes, which the source is not needed for, five seconds.
    fn default() -> Patience {
        Patience { read: Duration::from_secs(300), flush: Duration::from_secs(5) }
    }
}

/// The other host of a move, as a destination needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub node: String,
    /// The volume's number in sessions with it.
    pub stream: Stream,
    /// Whether the guest's writes are mirrored back to it.
    pub reverse: bool,
    /// How long to wait for it.
    pub patience: Patience,
}

/// What this host is for a volume, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The only writer, whole.
    Primary,
    /// The only writer; a shadow is being made.
    Shadowed,
    /// A shadow in the making.
    Shadow(Source),
    /// The only writer; some blocks are still at the source.
    Draining(Source),
    /// Was the writer; this node is now.
    Fenced(String),
}

/// Why a volume could not take a role.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// A map file cannot be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The disk below failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A system call failed.
    #[error("the volume's files in {path} cannot be used")]
    Io {
        /// The volume's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The verb does not fit what the volume is now.
    #[error("volume {volume} is {is}: {verb} is not possible")]
    WrongRole {
        /// Which volume.
        volume: String,
        /// What it is.
        is: &'static str,
        /// What was asked.
        verb: &'static str,
    },
}

impl VolumeError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            VolumeError::Map(error) => error.kind(),
            VolumeError::Disk(error) => error.kind(),
            VolumeError::Io { .. } => ErrorKind::Unavailable,
            VolumeError::WrongRole { .. } => ErrorKind::Refused,
        }
    }
}

/// What a volume is opened with.
pub struct VolumeParts {
    /// Its name on this node.
    pub name: String,
    /// Its number on this node.
    pub resource: ResourceId,
    /// The file or device with its bytes.
    pub path: PathBuf,
    /// That file, open.
    pub local: Arc<FileDisk>,
    /// Where its accesses and facts are noted.
    pub tap: Arc<Tap>,
    /// The running kernel.
    pub boot: BootId,
}

/// A volume of this host.
pub struct Volume {
    parts: VolumeParts,
    disk: Arc<VolumeDisk>,
    stripes: Arc<Stripes>,
    engine: Mutex<Engine>,
}

/// What a move has given the volume.
#[derive(Clone, Default)]
struct Engine {
    /// What the peer lacks.
    outbox: Option<Arc<Outbox>>,
    /// The standbys of a protected guest's disk, by node.
    standbys: BTreeMap<String, Follower>,
    /// Which blocks are here, at a destination.
    valid: Option<Arc<BlockMap>>,
    /// The receiving side, at a destination.
    shadow: Option<Arc<Shadow>>,
    /// Whether writes are mirrored back, at a destination.
    reverse: bool,
}

impl Volume {
    /// Opens a volume in the standing and epoch that its record tells. Creates map files that are missing.
    pub fn open(parts: VolumeParts, epoch: Epoch, standing: Standing) -> Result<Volume, VolumeError> {
        let disk = Arc::new(VolumeDisk::new(Arc::clone(&parts.local), epoch, Role::Primary));
        let volume = Volume { disk, stripes: Arc::default(), engine: Mutex::default(), parts };
        match standing {
            // Left behind by a crash between the record and the files. Believed by the next move, they would do harm.
            Standing::Primary => volume.end_engine()?,
            Standing::Shadowed => volume.resume_shadowed()?,
            Standing::Shadow(source) => _ = volume.become_shadow(epoch, source)?,
            Standing::Draining(source) => volume.resume_draining(epoch, source)?,
            Standing::Fenced(to) => volume.resume_fenced(epoch, to)?,
        }
        Ok(volume)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    /// Its number on this node.
    pub fn resource(&self) -> ResourceId {
        self.parts.resource
    }

    /// Its size in bytes.
    pub fn size(&self) -> Bytes {
        self.parts.local.size()
    }

    /// Its size in blocks.
    pub fn blocks(&self) -> BlockCount {
        self.size().blocks()
    }

    /// The file with its bytes.
    pub fn path(&self) -> &Path {
        &self.parts.path
    }

    /// The gate that every request of a guest passes.
    pub fn disk(&self) -> &Arc<VolumeDisk> {
        &self.disk
    }

    /// The file, without the gate: for engines.
    pub fn local(&self) -> &Arc<FileDisk> {
        &self.parts.local
    }

    /// Where its accesses and facts are noted.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.parts.tap
    }

    /// The locks that writers and engines share.
    pub fn stripes(&self) -> &Arc<Stripes> {
        &self.stripes
    }

    /// The kernel that runs here.
    pub fn boot(&self) -> BootId {
        self.parts.boot
    }

    /// This copy for a comparison with one that no move keeps in step: all that is here, whatever is owed.
    pub fn side(&self) -> Side {
        let (local, stripes) = (self.parts.local.clone(), Arc::clone(&self.stripes));
        Side { local, stripes, valid: self.valid(), outbox: None }
    }

    /// What the peer lacks, while a move is on.
    pub fn outbox(&self) -> Option<Arc<Outbox>> {
        self.engine.lock().outbox.clone()
    }

    /// Which blocks are here, at a destination.
    pub fn valid(&self) -> Option<Arc<BlockMap>> {
        self.engine.lock().valid.clone()
    }

    /// The receiving side, at a destination.
    pub fn shadow(&self) -> Option<Arc<Shadow>> {
        self.engine.lock().shadow.clone()
    }

    /// The blocks that hold something, as far as the storage below can tell.
    pub fn allocated(&self) -> Result<Vec<Extent>, VolumeError> {
        let mut allocated: Vec<Extent> = Vec::new();
        let mut at = 0;
        for segment in self.parts.local.segments(0, self.size().0)? {
            if !segment.zero {
                let extent = Extent::touching(at, segment.len);
                match allocated.last_mut() {
                    Some(last) if last.end() >= extent.start => {
                        last.len = BlockCount(extent.end().0.max(last.end().0) - last.start.0);
                    }
                    _ => allocated.push(extent),
                }
            }
            at += segment.len;
        }
        Ok(allocated)
    }

    // ---- at the source --------------------------------------------------------------------------------------

    /// A shadow begins, or goes on after a restart: writes are noted from now on. A new shadow is owed everything.
    /// After a reboot of this host nothing is believed of what it had.
    pub fn begin_shadow(&self) -> Result<Arc<Outbox>, VolumeError> {
        let (epoch, role) = self.disk.state();
        if !matches!(role, Role::Primary) {
            return Err(self.wrong_role(&role, "making a shadow of it"));
        }
        if !self.owed_path().exists() {
            self.owe_everything(&self.owed_path())?;
        }
        let outbox = self.open_outbox(Lost::SetAll)?;
        self.disk.become_role(epoch, self.tracked(vec![of_move(&outbox)]))?;
        self.engine.lock().outbox = Some(Arc::clone(&outbox));
        Ok(outbox)
    }

    /// The shadow is given up: the volume is as if there had been none.
    pub fn end_shadow(&self) -> Result<(), VolumeError> {
        let (epoch, role) = self.disk.state();
        match role {
            Role::Tracked(_) => self.disk.become_role(epoch, Role::Primary)?,
            Role::Primary => {}
            other => return Err(self.wrong_role(&other, "giving up its shadow")),
        }
        *self.engine.lock() = Engine::default();
        self.remove_owed()
    }

    /// Writes are refused from now on: at the epoch of today while a handover is being decided, at that of the next
    /// writer once it is. Returns when no write is under way.
    pub fn fence(&self, epoch: Epoch, to: &str) -> Result<(), VolumeError> {
        Ok(self.disk.become_role(epoch, Role::Fenced { to: to.to_string() })?)
    }

    /// A handover did not happen: this host is still the writer, and its shadow goes on.
    pub fn unfence(&self) -> Result<(), VolumeError> {
        let (epoch, role) = self.disk.state();
        let Some(outbox) = self.outbox() else { return Err(self.wrong_role(&role, "letting it write again")) };
        Ok(self.disk.become_role(epoch, self.tracked(vec![of_move(&outbox)]))?)
    }

    fn tracked(&self, followers: Vec<Follower>) -> Role {
        let (local, stripes) = (Arc::clone(&self.parts.local), Arc::clone(&self.stripes));
        Role::Tracked(Arc::new(TrackedDisk { local, followers, stripes }))
    }

    fn resume_fenced(&self, epoch: Epoch, to: String) -> Result<(), VolumeError> {
        if self.owed_path().exists() {
            let outbox = self.open_outbox(Lost::SetAll)?;
            self.engine.lock().outbox = Some(outbox);
        }
        Ok(self.disk.become_role(epoch, Role::Fenced { to })?)
    }

    // ---- at the destination ---------------------------------------------------------------------------------

    /// The volume becomes, or goes on as, the passive shadow of the one at `source`.
    pub fn become_shadow(&self, epoch: Epoch, source: Source) -> Result<Arc<Shadow>, VolumeError> {
        let shadow = self.start_engine(epoch, &source, Phase::Priming)?;
        self.disk.become_role(epoch, Role::Shadow(shadow.clone()))?;
        Ok(shadow)
    }

    /// The source has decided: pushes of the epoch before count no more, and then what the source says it owes is not
    /// valid here. In this order, or a late push could make a block valid that was just forgotten.
    pub fn forget(&self, epoch: Epoch, lacking: &[Extent]) -> Result<(), VolumeError> {
        let engine = self.engine.lock().clone();
        let (Some(shadow), Some(valid)) = (engine.shadow, engine.valid) else {
            return Err(self.wrong_role(&self.disk.state().1, "taking it over"));
        };
        shadow.take_over(epoch);
        valid.retract(lacking).map_err(|source| self.io(source))
    }

    /// This host is the only writer from now on: on record, and what it lacks is forgotten.
    pub fn activate(&self, epoch: Epoch) -> Result<(), VolumeError> {
        let engine = self.engine.lock().clone();
        let (Some(shadow), Some(valid), Some(outbox)) = (engine.shadow, engine.valid, engine.outbox) else {
            return Err(self.wrong_role(&self.disk.state().1, "taking it over"));
        };
        shadow.take_over(epoch);
        let layered = LayeredDisk {
            local: Arc::clone(&self.parts.local),
            valid,
            peer: shadow,
            outbox: engine.reverse.then_some(outbox),
            stripes: Arc::clone(&self.stripes),
        };
        Ok(self.disk.become_role(epoch, Role::Draining(Arc::new(layered)))?)
    }

    /// Blocks that are not here yet; zero for a volume that is whole.
    pub fn missing(&self) -> BlockCount {
        self.valid().map_or(BlockCount(0), |valid| BlockCount(self.blocks().0 - valid.count().0))
    }

    /// Makes sure that everything is here and durable, so that the source may be let go. Refused while something is
    /// missing. The volume's record must say that it is primary before [`Volume::release`]: the maps go there, and
    /// without them nobody could tell any more what is missing.
    pub fn make_whole(&self) -> Result<(), VolumeError> {
        let role = self.disk.state().1;
        let drains = matches!(role, Role::Draining(_) | Role::Unconfirmed(_));
        if !drains || self.missing() > BlockCount(0) {
            return Err(self.wrong_role(&role, "releasing its source"));
        }
        Ok(self.parts.local.flush()?)
    }

    /// The source is let go: the volume, which is whole and recorded as primary, is an ordinary one.
    pub fn release(&self) -> Result<(), VolumeError> {
        let (epoch, role) = self.disk.state();
        if !matches!(role, Role::Draining(_)) {
            return Err(self.wrong_role(&role, "releasing its source"));
        }
        self.disk.become_role(epoch, Role::Primary)?;
        self.end_engine()
    }

    /// The shadow is given up before it was the writer. The file stays; whoever owns the volume removes it.
    pub fn abandon(&self) -> Result<(), VolumeError> {
        let (epoch, role) = self.disk.state();
        let Role::Shadow(peer) = role else { return Err(self.wrong_role(&role, "giving the shadow up")) };
        self.disk.become_role(epoch, Role::Fenced { to: crate::disk::layered::Peer::name(&*peer) })?;
        self.end_engine()
    }

    fn resume_draining(&self, epoch: Epoch, source: Source) -> Result<(), VolumeError> {
        self.start_engine(epoch, &source, Phase::Draining)?;
        self.activate(epoch)
    }

    fn start_engine(&self, epoch: Epoch, source: &Source, phase: Phase) -> Result<Arc<Shadow>, VolumeError> {
        let valid = Arc::new(BlockMap::open(&self.valid_path(), self.blocks(), self.parts.boot, Lost::KeepDurable)?);
        // After a reboot it is not known which unflushed writes the source has: all of them are sent again.
        let outbox = self.open_outbox(Lost::SetAll)?;
        if phase == Phase::Priming {
            // Nothing was written here yet.
            outbox.forgive(valid.whole());
        }
        // Nor is it known then what the source had made durable.
        let unflushed = BlockMap::open(&self.unflushed_path(), self.blocks(), self.parts.boot, Lost::SetAll)?;
        let shadow = Shadow::start(ShadowParts {
            resource: self.parts.resource,
            stream: source.stream,
            peer: source.node.clone(),
            local: Arc::clone(&self.parts.local),
            valid: Arc::clone(&valid),
            outbox: Arc::clone(&outbox),
            unflushed: Unflushed::new(unflushed),
            stripes: Arc::clone(&self.stripes),
            tap: Arc::clone(&self.parts.tap),
            reverse: source.reverse,
            patience: source.patience.read,
            mirror_patience: source.patience.flush,
            phase,
            epoch,
        });
        *self.engine.lock() = Engine {
            outbox: Some(outbox),
            standbys: BTreeMap::new(),
            valid: Some(valid),
            shadow: Some(Arc::clone(&shadow)),
            reverse: source.reverse,
        };
        Ok(shadow)
    }

    fn end_engine(&self) -> Result<(), VolumeError> {
        let engine = std::mem::take(&mut *self.engine.lock());
        if let Some(shadow) = engine.shadow {
            shadow.stop();
        }
        self.remove_owed()?;
        self.remove(&self.unflushed_path())?;
        self.remove(&self.valid_path())
    }

    // ---- files ----------------------------------------------------------------------------------------------

    fn open_outbox(&self, lost: Lost) -> Result<Arc<Outbox>, VolumeError> {
        self.open_outbox_in(&self.owed_path(), lost)
    }

    fn open_outbox_in(&self, path: &Path, lost: Lost) -> Result<Arc<Outbox>, VolumeError> {
        let map = BlockMap::open(path, self.blocks(), self.parts.boot, lost)?;
        Ok(Arc::new(Outbox::new(map).map_err(|source| self.io(source))?))
    }

    /// Makes an outbox that owes everything, under another name first: a crash leaves all of it or nothing.
    fn owe_everything(&self, path: &Path) -> Result<(), VolumeError> {
        let draft = beside(&self.parts.path, "owed.new");
        self.remove(&draft)?;
        let map = BlockMap::open(&draft, self.blocks(), self.parts.boot, Lost::SetAll)?;
        map.set(map.whole());
        std::fs::rename(&draft, path).map_err(|source| self.io(source))
    }

    /// Nothing is owed to anybody any more.
    fn remove_owed(&self) -> Result<(), VolumeError> {
        let standbys = standbys::found_beside(&self.parts.path).map_err(|source| self.io(source))?;
        standbys.iter().try_for_each(|(_, path)| self.remove(path))?;
        self.remove(&self.owed_path())
    }

    fn owed_path(&self) -> PathBuf {
        beside(&self.parts.path, "owed")
    }

    fn unflushed_path(&self) -> PathBuf {
        beside(&self.parts.path, "unflushed")
    }

    fn valid_path(&self) -> PathBuf {
        beside(&self.parts.path, "valid")
    }

    fn remove(&self, path: &Path) -> Result<(), VolumeError> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io(error)),
            _ => Ok(()),
        }
    }

    fn io(&self, source: io::Error) -> VolumeError {
        VolumeError::Io { path: self.parts.path.clone(), source }
    }

    fn wrong_role(&self, role: &Role, verb: &'static str) -> VolumeError {
        VolumeError::WrongRole { volume: self.parts.name.clone(), is: role.name(), verb }
    }
}

/// The peer of a move: it has no turns.
fn of_move(outbox: &Arc<Outbox>) -> Follower {
    Follower { outbox: Arc::clone(outbox), turns: Arc::default() }
}

/// The map file of a volume's file.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes what belongs to the volume in `path`: its map files, then the file itself.
pub fn remove_files(path: &Path) -> io::Result<()> {
    let beside = ["owed", "unflushed", "valid", "standby"].map(|suffix| beside(path, suffix));
    let owed = standbys::found_beside(path)?.into_iter().map(|(_, file)| file);
    for file in beside.into_iter().chain(owed).chain([path.to_path_buf()]) {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
