//! The keeper of this node's volumes: their records, files, exports and loops.
//!
//! A volume is whole here or not at all: every verb first does what can fail, then writes the record, then shows the
//! volume to others. After a restart everything is brought back from the records.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant as Clock, SystemTime, UNIX_EPOCH},
};

use gnomon_terms::{Bytes, ResourceId};
use gnomon_volume::{
    blockmap::BootId,
    disk::{FileDisk, ForkDisk, Mode},
    front::vhost_user::VhostUserServer,
    serve::{Export, Exports, ServeError},
    tap::Tap,
    volume::{Volume, VolumeParts, remove_files},
};
use parking_lot::{Mutex, RwLock};

use super::{
    learned::{Beginning, LearnedFile},
    records::{Records, StandingRecord, VolumeRecord},
    teacher::Learning,
    watcher::Watcher,
};
use crate::{
    api::{
        ApiError, Kind,
        types::{AccessCounts, VolumeView},
    },
    names,
};

/// Free space that is left to the file system when a volume is made: a full root file system takes the host down.
const SPARE_SPACE: u64 = 64 << 20;

/// A volume of this node, open.
pub struct VolumeHandle {
    record: Mutex<VolumeRecord>,
    /// The volume plane's side of it.
    pub volume: Arc<Volume>,
    /// Its loop.
    pub watcher: Watcher,
    /// What that learns, on disk.
    pub learned: LearnedFile,
    /// The job of the move it takes part in.
    pub job: Mutex<Option<String>>,
}

/// A volume that is on record and could not be opened.
struct Unusable {
    record: VolumeRecord,
    why: String,
}

/// All volumes of this node.
pub struct Keeper {
    dir: PathBuf,
    nbd_socket: PathBuf,
    records: Arc<Records>,
    learning: Learning,
    exports: Arc<Exports>,
    volumes: RwLock<BTreeMap<String, Arc<VolumeHandle>>>,
    unusable: RwLock<BTreeMap<String, Unusable>>,
    /// Those of lent volumes that QEMUs reach through their guests' memory, by the name of the export.
    queues: Mutex<BTreeMap<String, VhostUserServer>>,
    next_resource: AtomicU64,
    boot: BootId,
    origin: Clock,
}

impl Keeper {
    /// Opens every volume on record. One that cannot be opened is told in the log and to whoever asks for it; the
    /// others are served.
    pub fn open(
        dir: &Path,
        nbd_socket: &Path,
        records: Arc<Records>,
        learning: Learning,
    ) -> Result<Keeper, ApiError> {
        std::fs::create_dir_all(dir)?;
        let keeper = Keeper {
            dir: dir.to_path_buf(),
            nbd_socket: nbd_socket.to_path_buf(),
            records,
            learning,
            exports: Exports::new(),
            volumes: RwLock::default(),
            unusable: RwLock::default(),
            queues: Mutex::default(),
            next_resource: AtomicU64::new(1),
            boot: BootId::of_this_host()?,
            origin: Clock::now(),
        };
        for record in keeper.records.volumes()? {
            if let Err(error) = keeper.bring_back(record.clone()) {
                tracing::error!(volume = record.name, %error, "the volume cannot be opened and is not served");
                let why = error.to_string();
                keeper.unusable.write().insert(record.name.clone(), Unusable { record, why });
            }
        }
        Ok(keeper)
    }

    fn bring_back(&self, record: VolumeRecord) -> Result<(), ApiError> {
        let local = FileDisk::open(&record.path, Some(Bytes(record.size)), Mode::ReadWrite)?;
        self.show(record, local)?;
        Ok(())
    }

    /// What fronts serve.
    pub fn exports(&self) -> &Arc<Exports> {
        &self.exports
    }

    /// The socket where guests of this host find their disks.
    pub fn nbd_socket(&self) -> &Path {
        &self.nbd_socket
    }

    /// What loops know and learn.
    pub fn learning(&self) -> &Learning {
        &self.learning
    }

    /// The running kernel.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// The volume called `name`.
    pub fn get(&self, name: &str) -> Result<Arc<VolumeHandle>, ApiError> {
        self.volumes.read().get(name).cloned().ok_or_else(|| self.absent(name))
    }

    /// Why there is no volume to be had under `name`.
    fn absent(&self, name: &str) -> ApiError {
        match self.unusable.read().get(name) {
            Some(Unusable { why, .. }) => {
                ApiError::new(Kind::Corrupt, format!("volume '{name}' could not be opened and is not served: {why}"))
                    .then("mend its file and restart the daemon, or remove the volume")
            }
            None => ApiError::not_found("volume", name),
        }
    }

    /// All volumes, by name.
    pub fn all(&self) -> Vec<Arc<VolumeHandle>> {
        self.volumes.read().values().cloned().collect()
    }

    /// Where the file of a volume called `name` goes. Refused when one of that name is there.
    pub fn place_for(&self, name: &str) -> Result<PathBuf, ApiError> {
        names::check(name).map_err(|error| ApiError::usage(error.to_string()))?;
        if self.volumes.read().contains_key(name) || self.unusable.read().contains_key(name) {
            return Err(ApiError::refused(format!("there is a volume '{name}' already"))
                .then("choose another name, or remove it with `gnomon volume rm`"));
        }
        Ok(self.dir.join(format!("{name}.raw")))
    }

    /// Bytes free in the file system of the volumes.
    pub fn free_space(&self) -> Result<u64, ApiError> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(std::io::Error::from)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Refuses what would not fit into the file system of the volumes.
    pub fn check_space(&self, needed: u64, what: &str) -> Result<(), ApiError> {
        let free = self.free_space()?;
        if needed.saturating_add(SPARE_SPACE) > free {
            return Err(ApiError::unavailable(format!(
                "{what} needs {} in {} and {} are free",
                Bytes(needed),
                self.dir.display(),
                Bytes(free)
            ))
            .then("free some space there, or set volume.dir to a larger file system"));
        }
        Ok(())
    }

    /// Makes an empty volume, whose loop begins with what another's has learned. It takes space as it is written.
    pub fn create(&self, name: &str, size: u64, begins: &Beginning) -> Result<Arc<VolumeHandle>, ApiError> {
        let path = self.place_for(name)?;
        if size == 0 {
            return Err(ApiError::usage("a volume of no bytes is of no use: give it a size such as 20G"));
        }
        self.check_space(0, "a volume")?;
        let local = FileDisk::create(&path, Bytes(size))?;
        let record = self.new_record(name, path, size, 1, StandingRecord::Primary);
        self.keep(record, local, begins)
    }

    /// Takes over a file at the place that [`Keeper::place_for`] gave; the loop begins like another's.
    pub fn take_over(&self, name: &str, path: PathBuf, begins: &Beginning) -> Result<Arc<VolumeHandle>, ApiError> {
        let local = FileDisk::open(&path, None, Mode::ReadWrite)?;
        let size = gnomon_volume::disk::Disk::size(&local).0;
        let record = self.new_record(name, path, size, 1, StandingRecord::Primary);
        self.keep(record, local, begins)
    }

    /// Makes the volume that a move brings here.
    pub fn create_shadow(&self, draft: VolumeRecord) -> Result<Arc<VolumeHandle>, ApiError> {
        let local = FileDisk::create(&draft.path, Bytes(draft.size))?;
        self.keep(draft, local, &Beginning::default())
    }

    /// A record of a volume that begins now.
    pub fn new_record(
        &self,
        name: &str,
        path: PathBuf,
        size: u64,
        epoch: u64,
        standing: StandingRecord,
    ) -> VolumeRecord {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        VolumeRecord {
            name: name.to_string(),
            path,
            size,
            created,
            epoch,
            standing,
            move_id: None,
            handover: None,
            like: None,
        }
    }

    fn keep(&self, record: VolumeRecord, local: FileDisk, begins: &Beginning) -> Result<Arc<VolumeHandle>, ApiError> {
        let record = VolumeRecord { like: begins.like.clone(), ..record };
        // What an earlier volume of this name may have left is not its own.
        LearnedFile::beside(&record.path).remove()?;
        LearnedFile::beside(&record.path).write(&begins.experience, 0)?;
        self.records.put_volume(&record)?;
        self.show(record, local)
    }

    /// Opens the plane's side, starts the loop, and shows the volume to fronts.
    fn show(&self, record: VolumeRecord, local: FileDisk) -> Result<Arc<VolumeHandle>, ApiError> {
        let resource = ResourceId(self.next_resource.fetch_add(1, Ordering::Relaxed));
        let tap = Arc::new(Tap::since(self.origin));
        let parts = VolumeParts {
            name: record.name.clone(),
            resource,
            path: record.path.clone(),
            local: Arc::new(local),
            tap: Arc::clone(&tap),
            boot: self.boot,
        };
        let volume = Arc::new(Volume::open(parts, record.epoch(), record.standing())?);
        volume.doubt()?;
        let learned = LearnedFile::beside(&record.path);
        let watcher = Watcher::start(&volume, &self.learning, learned.read())?;
        self.exports.add(Export {
            name: record.name.clone(),
            description: format!("gnomon volume {}", record.name),
            disk: volume.disk().clone(),
            read_only: false,
            resource,
            tap: Some(tap),
        })?;
        let name = record.name.clone();
        let handle =
            Arc::new(VolumeHandle { record: Mutex::new(record), volume, watcher, learned, job: Mutex::default() });
        self.volumes.write().insert(name, Arc::clone(&handle));
        Ok(handle)
    }

    /// Offers a volume to one QEMU, under a name with its fencing token ([`lent`]). Other exports of the volume are not
    /// concerned.
    pub fn lend(&self, name: &str, token: u64, vm: &str) -> Result<(), ApiError> {
        let handle = self.get(name)?;
        self.exports.add(Export {
            name: lent(name, token),
            description: format!("gnomon volume {name}, for VM {vm}"),
            disk: handle.volume.disk().clone(),
            read_only: false,
            resource: handle.volume.resource(),
            tap: Some(Arc::clone(handle.volume.tap())),
        })?;
        Ok(())
    }

    /// Whether a volume is offered to the QEMU with this token.
    pub fn is_lent(&self, name: &str, token: u64) -> bool {
        let wanted = lent(name, token);
        self.exports.list().iter().any(|(export, _)| *export == wanted)
    }

    /// Serves a volume that is lent to one QEMU at a socket of its own, out of the guest's memory.
    pub fn lend_queues(&self, name: &str, token: u64, socket: &Path) -> Result<(), ApiError> {
        let export = lent(name, token);
        let server = VhostUserServer::bind(socket, Arc::clone(&self.exports), &export)?;
        self.queues.lock().insert(export, server);
        Ok(())
    }

    /// Holds the volume as it is this moment, for a copy of its guest to write apart from it. Space is taken as either
    /// side writes, beside the volume, and given back when the fork is dropped.
    pub fn fork(&self, name: &str) -> Result<Arc<ForkDisk>, ApiError> {
        let handle = self.get(name)?;
        let mut path = handle.record().path.into_os_string();
        path.push(".fork");
        let overlay = FileDisk::create(Path::new(&path), handle.volume.size())?;
        // Without a name from the start, it is gone with whoever has it open, however that ends.
        std::fs::remove_file(&path)?;
        Ok(handle.volume.disk().fork(overlay)?)
    }

    /// Offers a fork to one QEMU, under the name that the volume itself would have there.
    pub fn lend_fork(&self, name: &str, token: u64, vm: &str, fork: Arc<ForkDisk>) -> Result<(), ApiError> {
        let resource = self.get(name)?.volume.resource();
        let description = format!("a copy of gnomon volume {name}, for a trial of VM {vm}");
        let export =
            Export { name: lent(name, token), description, disk: fork, read_only: false, resource, tap: None };
        Ok(self.exports.add(export)?)
    }

    /// Takes a volume back from one QEMU: when this returns, no request of it touches the volume any more.
    pub fn take_back(&self, name: &str, token: u64) {
        match self.exports.remove(&lent(name, token)) {
            // It was not lent, or has been taken back already.
            Ok(()) | Err(ServeError::Unknown { .. }) => {}
            Err(error) => tracing::warn!(volume = name, token, %error, "taking it back"),
        }
        let server = self.queues.lock().remove(&lent(name, token));
        if let Some(server) = server {
            server.stop();
        }
    }

    /// How many clients use a volume, under whichever name.
    fn clients(&self, name: &str) -> usize {
        let of_qemus = format!("{name}@");
        let exports = self.exports.list();
        let names = exports.iter().filter(|(export, _)| export == name || export.starts_with(&of_qemus));
        names.map(|(export, _)| self.exports.clients(export)).sum()
    }

    /// Changes a volume's record; it is durable before this returns. `deed` changes a copy, so nothing is believed
    /// that was not written.
    pub fn update<T>(&self, handle: &VolumeHandle, deed: impl FnOnce(&mut VolumeRecord) -> T) -> Result<T, ApiError> {
        let mut record = handle.record.lock();
        let mut draft = record.clone();
        let result = deed(&mut draft);
        self.records.put_volume(&draft)?;
        *record = draft;
        Ok(result)
    }

    /// Changes several volumes' records, all or none; durable before this returns.
    pub fn update_all<T>(
        &self,
        changes: &[(&VolumeHandle, T)],
        deed: impl Fn(&mut VolumeRecord, &T),
    ) -> Result<(), ApiError> {
        let mut order: Vec<&(&VolumeHandle, T)> = changes.iter().collect();
        // One order for everybody, so that two of these never wait for each other.
        order.sort_by_key(|(handle, _)| handle.record().name);
        let mut records: Vec<_> = order.iter().map(|(handle, _)| handle.record.lock()).collect();
        let mut drafts: Vec<VolumeRecord> = records.iter().map(|record| (**record).clone()).collect();
        for (draft, (_, change)) in drafts.iter_mut().zip(&order) {
            deed(draft, change);
        }
        self.records.put_volumes(&drafts)?;
        for (record, draft) in records.iter_mut().zip(drafts) {
            **record = draft;
        }
        Ok(())
    }

    /// Removes a volume and its data; tells what it was.
    pub fn remove(&self, name: &str) -> Result<VolumeView, ApiError> {
        if self.unusable.read().contains_key(name) {
            return self.forget_unusable(name);
        }
        let handle = self.get(name)?;
        self.refuse_if_in_use(name)?;
        refuse_if_moving(&handle.record())?;
        let view = self.view(&handle);
        self.discard(&handle)?;
        Ok(view)
    }

    /// Refuses what must not happen to a volume that has clients.
    pub fn refuse_if_in_use(&self, name: &str) -> Result<(), ApiError> {
        match self.clients(name) {
            0 => Ok(()),
            clients => Err(ApiError::refused(format!("volume '{name}' is in use by {clients} clients"))
                .then("stop its VM, or disconnect them, first")),
        }
    }

    fn forget_unusable(&self, name: &str) -> Result<VolumeView, ApiError> {
        let mut unusable = self.unusable.write();
        let Some(Unusable { record, .. }) = unusable.get(name) else {
            return Err(ApiError::not_found("volume", name));
        };
        refuse_if_moving(record)?;
        let view = self.view_of(record.clone(), UNUSABLE);
        self.records.remove_volume(name)?;
        LearnedFile::beside(&record.path).remove()?;
        remove_files(&record.path)?;
        unusable.remove(name);
        Ok(view)
    }

    /// Lets a volume go without asking who uses it: the end of a move that was given up.
    pub fn discard(&self, handle: &VolumeHandle) -> Result<(), ApiError> {
        let record = handle.record();
        self.exports.remove(&record.name)?;
        self.volumes.write().remove(&record.name);
        self.records.remove_volume(&record.name)?;
        handle.learned.remove()?;
        Ok(remove_files(&record.path)?)
    }

    /// The volume as the API shows it.
    pub fn view(&self, handle: &VolumeHandle) -> VolumeView {
        let view = self.view_of(handle.record(), handle.role());
        VolumeView { accesses: handle.watcher.counts(), job: handle.job.lock().clone(), ..view }
    }

    /// All volumes as the API shows them, by name; also those that could not be opened.
    pub fn list(&self) -> Vec<VolumeView> {
        let unusable = self.unusable.read();
        let unusable = unusable.values().map(|volume| self.view_of(volume.record.clone(), UNUSABLE));
        let mut all: Vec<VolumeView> = self.all().iter().map(|handle| self.view(handle)).chain(unusable).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    fn view_of(&self, record: VolumeRecord, role: &str) -> VolumeView {
        use std::os::unix::fs::MetadataExt;
        VolumeView {
            role: role.to_string(),
            size: record.size,
            allocated: std::fs::metadata(&record.path).map_or(0, |meta| meta.blocks() * 512),
            path: record.path.display().to_string(),
            created: record.created,
            epoch: record.epoch,
            nbd: format!("nbd+unix:///{}?socket={}", record.name, self.nbd_socket.display()),
            clients: self.clients(&record.name) as u64,
            accesses: AccessCounts::default(),
            job: None,
            name: record.name,
        }
    }
}

/// The role of a volume that could not be opened.
const UNUSABLE: &str = "unusable";

fn refuse_if_moving(record: &VolumeRecord) -> Result<(), ApiError> {
    match record.move_id {
        Some(_) => Err(ApiError::refused(format!("volume '{}' takes part in a move", record.name))
            .then("let the move end, or cancel it, first")),
        None => Ok(()),
    }
}

/// The name of a volume's export for the QEMU with `token`. Names of volumes have no `@`.
pub fn lent(name: &str, token: u64) -> String {
    format!("{name}@{token}")
}

impl VolumeHandle {
    /// What this node is for it, in a word.
    pub fn role(&self) -> &'static str {
        match self.record.lock().standing {
            StandingRecord::Released(_) => "released",
            StandingRecord::Lost(_) => "lost",
            _ => self.volume.disk().state().1.name(),
        }
    }

    /// A copy of its record.
    pub fn record(&self) -> VolumeRecord {
        self.record.lock().clone()
    }
}
