//! What the daemon must know again after a restart, as JSON in the store. Nothing else is kept anywhere.

mod group;
mod landing;
mod protection;

use std::{path::PathBuf, sync::Arc};

use gnomon_proto::{
    frame::Stream,
    handover::{Given, TakerRecord},
};
use gnomon_store::{Store, extents::ExtentTable};
use gnomon_terms::Epoch;
use gnomon_volume::volume::{Patience, Source, Standing};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use group::GroupRecord;
pub use landing::LandingRecord;
pub use protection::{ProtectRecord, ShadowRecord};

use crate::api::{
    ApiError, Kind,
    types::{EventView, ImpactView, MoveMode, RamWay},
};

/// A volume of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its name, also of its export.
    pub name: String,
    /// The file with its bytes.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When it was made here, seconds since 1970.
    pub created: u64,
    /// Who may write: rises with each handover.
    pub epoch: u64,
    /// What this node is for it.
    pub standing: StandingRecord,
    /// The move it takes part in, on either side.
    #[serde(default)]
    pub move_id: Option<String>,
    /// A handover that is under way, on either side.
    #[serde(default)]
    pub handover: Option<HandoverRecord>,
    /// The volume with whose experience its loop began.
    #[serde(default)]
    pub like: Option<String>,
}

/// What this node is for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StandingRecord {
    /// The only writer, whole.
    Primary,
    /// The only writer; a shadow is being made.
    Shadowed,
    /// A shadow in the making.
    Shadow(SourceRecord),
    /// The only writer; some blocks are still at the source.
    Draining(SourceRecord),
    /// Was the writer; this node is now.
    Fenced(String),
    /// Was the writer; a move ended and the data here is of no more use.
    Released(String),
    /// Was the writer; the other node of the move was made the writer without this one, which was away.
    Lost(String),
}

/// The source of a move, as the destination records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Its name.
    pub node: String,
    /// The volume's number in sessions with it.
    pub stream: u32,
    /// Whether writes are mirrored back.
    pub reverse: bool,
    /// The kernel that ran there when it was last heard: with another one, what it had in memory only is lost.
    #[serde(default)]
    pub boot: Option<[u8; 16]>,
}

/// What a node has promised or decided about a volume's next epoch. See gnomon-proto's handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverRecord {
    /// This node gave the volume away, and the other may not know it yet.
    Given(Given),
    /// This node promised to take it, or has taken it.
    Taker(TakerRecord),
}

/// A move that this node is the source of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// Names it on both nodes.
    pub id: String,
    /// The VM that goes along.
    pub vm: Option<String>,
    /// Its volumes; the place in the list is the stream.
    pub volumes: Vec<String>,
    /// Where it goes.
    pub to: String,
    /// When to switch.
    pub mode: MoveMode,
    /// How its memory goes, if that was asked for.
    #[serde(default)]
    pub ram: Option<RamWay>,
    /// The most it may use, bytes a second.
    pub bandwidth: Option<u64>,
    /// Whether the destination's writes are mirrored back.
    pub reverse: bool,
    /// Whether the handover has been decided: the guest runs, or will run, at the destination.
    pub switched: bool,
    /// Whether it is to come back, though it has switched.
    #[serde(default)]
    pub back: bool,
    /// Whether the guest was caught between the two nodes: its memory is nowhere, and its user is told to the end.
    #[serde(default)]
    pub guest_lost: bool,
}

/// A volume that was confirmed at the destination of a move whose source was gone for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmedRecord {
    /// The move.
    pub move_id: String,
    /// The volume.
    pub volume: String,
    /// The source, which was said to be fenced.
    pub source: String,
    /// Its epoch since.
    pub epoch: u64,
    /// Whether the source knows.
    pub is_told: bool,
}

/// A VM of this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its name.
    pub name: String,
    /// Its volumes.
    pub disks: Vec<String>,
    /// Fences its QEMU: the exports of its disks carry it, and a QEMU with an older one finds no disk.
    #[serde(default)]
    pub token: u64,
    /// Which node may run it: rises when its shadow takes over.
    #[serde(default = "first_epoch")]
    pub epoch: u64,
    /// The program that runs it; `None` for this host's own.
    #[serde(default)]
    pub program: Option<ProgramRecord>,
    /// The program that ran it before its last update: where a rollback goes.
    #[serde(default)]
    pub before: Option<ProgramRecord>,
    /// A second QEMU, of an update that is under way.
    #[serde(default)]
    pub beside: Option<BesideRecord>,
    /// The process, while there is one.
    pub qemu: Option<gnomon_qemu::QemuRecord>,
    /// Whether its memory follows what its guest needs.
    #[serde(default)]
    pub follows: bool,
    /// How it ended, when it did.
    pub exit: Option<String>,
    /// What it said when it ended.
    pub stderr: Option<String>,
}

impl VmRecord {
    /// A VM whose guest runs nowhere yet, in its host's own program.
    pub fn new(name: &str, disks: Vec<String>, token: u64) -> VmRecord {
        VmRecord {
            name: name.to_string(),
            disks,
            token,
            epoch: first_epoch(),
            program: None,
            before: None,
            beside: None,
            qemu: None,
            follows: false,
            exit: None,
            stderr: None,
        }
    }
}

/// Updates of one VM whose impact is remembered: more than anybody makes in a year, and some 40 KB.
pub const IMPACTS: usize = 64;

/// A VM that has not changed hosts as a whole.
fn first_epoch() -> u64 {
    1
}

/// A QEMU program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramRecord {
    /// Where it is.
    pub path: PathBuf,
    /// Folders with its firmware, for one that is not installed where it was built for.
    pub data_dirs: Vec<PathBuf>,
    /// For one that is to be gone back to: what the machine and its processor were called in it.
    #[serde(default)]
    pub names: Option<NamesRecord>,
}

/// What a machine is called on a QEMU's command line. Different names may stand for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesRecord {
    /// Machine type, versioned or an alias.
    pub machine: String,
    /// Processor model; `None`: left open.
    pub cpu: Option<String>,
}

/// A second QEMU of a VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BesideRecord {
    /// The process.
    pub qemu: gnomon_qemu::QemuRecord,
    /// Its fencing token.
    pub token: u64,
    /// What it runs by.
    pub program: ProgramRecord,
    /// Whether it is to take over: then the guest may run in it.
    pub is_successor: bool,
}

impl VolumeRecord {
    /// The standing as the volume plane takes it.
    pub fn standing(&self) -> Standing {
        match &self.standing {
            StandingRecord::Primary => Standing::Primary,
            StandingRecord::Shadowed => Standing::Shadowed,
            StandingRecord::Shadow(source) => Standing::Shadow(source.source()),
            StandingRecord::Draining(source) => Standing::Draining(source.source()),
            StandingRecord::Fenced(to) | StandingRecord::Released(to) | StandingRecord::Lost(to) => {
                Standing::Fenced(to.clone())
            }
        }
    }

    /// The epoch as the volume plane takes it.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }
}

impl VmRecord {
    /// What its machine is called; `None` for one that was adopted.
    pub fn names(&self) -> Option<NamesRecord> {
        let spec = self.qemu.as_ref()?.spec.as_ref()?;
        Some(NamesRecord { machine: spec.machine.clone(), cpu: spec.cpu_model.clone() })
    }
}

impl SourceRecord {
    /// As the volume plane takes it.
    pub fn source(&self) -> Source {
        Source {
            node: self.node.clone(),
            stream: Stream(self.stream),
            reverse: self.reverse,
            patience: Patience::default(),
        }
    }
}

/// The store, by kind of record.
pub struct Records {
    store: Arc<dyn Store>,
}

impl Records {
    /// Records in `store`.
    pub fn new(store: Arc<dyn Store>) -> Records {
        Records { store }
    }

    /// The store itself, for what is not a record of these kinds.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Counts the daemon's starts, from 1.
    pub fn count_start(&self) -> Result<u64, ApiError> {
        let last: u64 = self.get("daemon/starts")?.unwrap_or(0);
        self.put("daemon/starts", &(last + 1))?;
        Ok(last + 1)
    }

    /// A fencing token greater than all before it on this node.
    pub fn next_token(&self) -> Result<u64, ApiError> {
        let last: u64 = self.get("daemon/token")?.unwrap_or(0);
        self.put("daemon/token", &(last + 1))?;
        Ok(last + 1)
    }

    /// All volumes.
    pub fn volumes(&self) -> Result<Vec<VolumeRecord>, ApiError> {
        self.all("volume/")
    }

    /// Writes a volume's record.
    pub fn put_volume(&self, record: &VolumeRecord) -> Result<(), ApiError> {
        self.put(&format!("volume/{}", record.name), record)
    }

    /// Writes several volumes' records, all or none.
    pub fn put_volumes(&self, records: &[VolumeRecord]) -> Result<(), ApiError> {
        let encode =
            |record: &VolumeRecord| serde_json::to_vec(record).map(|v| (format!("volume/{}", record.name), v));
        let encoded = records.iter().map(encode).collect::<Result<Vec<_>, _>>().map_err(ApiError::internal)?;
        self.store.put_all(&encoded)?;
        Ok(())
    }

    /// Removes a volume's record and what is known of its extents.
    pub fn remove_volume(&self, name: &str) -> Result<(), ApiError> {
        ExtentTable::forget(name, &*self.store)?;
        self.store.delete(&format!("volume/{name}"))?;
        Ok(())
    }

    /// All moves this node is the source of.
    pub fn moves(&self) -> Result<Vec<MoveRecord>, ApiError> {
        self.all("move/")
    }

    /// Writes a move's record.
    pub fn put_move(&self, record: &MoveRecord) -> Result<(), ApiError> {
        self.put(&format!("move/{}", record.id), record)
    }

    /// Removes a move's record.
    pub fn remove_move(&self, id: &str) -> Result<(), ApiError> {
        self.store.delete(&format!("move/{id}"))?;
        Ok(())
    }

    /// Notes that a move was rolled back without its destination, which has to learn it when it returns. Kept for
    /// good: nobody can say when that will be, and it is a few bytes.
    pub fn put_undone(&self, id: &str, to: &str) -> Result<(), ApiError> {
        self.put(&format!("undone/{id}"), &to)
    }

    /// The destination of a move that was rolled back without it.
    pub fn undone_to(&self, id: &str) -> Result<Option<String>, ApiError> {
        self.get(&format!("undone/{id}"))
    }

    /// Notes that a volume was confirmed without the source of its move, which has to learn it when it returns. Kept for
    /// good, like those that were undone.
    pub fn put_confirmed(&self, record: &ConfirmedRecord) -> Result<(), ApiError> {
        self.put(&format!("confirmed/{}/{}", record.move_id, record.volume), record)
    }

    /// All volumes that were confirmed without their source.
    pub fn confirmed(&self) -> Result<Vec<ConfirmedRecord>, ApiError> {
        self.all("confirmed/")
    }

    /// All VMs.
    pub fn vms(&self) -> Result<Vec<VmRecord>, ApiError> {
        self.all("vm/")
    }

    /// Writes a VM's record.
    pub fn put_vm(&self, record: &VmRecord) -> Result<(), ApiError> {
        self.put(&format!("vm/{}", record.name), record)
    }

    /// Removes a VM's record.
    pub fn remove_vm(&self, name: &str) -> Result<(), ApiError> {
        self.store.delete(&format!("vm/{name}"))?;
        Ok(())
    }

    /// Writes an event of a VM down, after all before it.
    pub fn put_event(&self, event: &EventView) -> Result<(), ApiError> {
        // Microseconds since 1970, padded, so that keys are in order of time.
        self.put(&format!("event/{}/{:020}", event.vm, (event.at * 1e6) as u64), event)
    }

    /// The events of a VM, oldest first.
    pub fn events(&self, vm: &str) -> Result<Vec<EventView>, ApiError> {
        self.all(&format!("event/{vm}/"))
    }

    /// Writes down what an update did to a VM, after all before it; of many the oldest are forgotten.
    pub fn put_impact(&self, impact: &ImpactView) -> Result<(), ApiError> {
        let prefix = format!("impact/{}/", impact.vm);
        self.put(&format!("{prefix}{:020}", (impact.at * 1e6) as u64), impact)?;
        let kept = self.store.scan(&prefix)?;
        for (key, _) in kept.iter().take(kept.len().saturating_sub(IMPACTS)) {
            self.store.delete(key)?;
        }
        Ok(())
    }

    /// What updates did to a VM, or to all, oldest first.
    pub fn impacts(&self, vm: Option<&str>) -> Result<Vec<ImpactView>, ApiError> {
        self.all(&vm.map_or("impact/".to_string(), |vm| format!("impact/{vm}/")))
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ApiError> {
        self.store.get(key)?.map(|record| read(key, &record.value)).transpose()
    }

    fn put<T: Serialize>(&self, key: &str, value: &T) -> Result<(), ApiError> {
        let value = serde_json::to_vec(value).map_err(ApiError::internal)?;
        self.store.put(key, &value)?;
        Ok(())
    }

    fn all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>, ApiError> {
        self.store.scan(prefix)?.iter().map(|(key, record)| read(key, &record.value)).collect()
    }
}

fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(value).map_err(|error| {
        ApiError::new(Kind::Corrupt, format!("the record {key} is not understood: {error}"))
            .then("it may be of a newer gnomon: start that one, or move the state folder away")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back() {
        let records = Records::new(Arc::new(gnomon_store::MemStore::default()));
        let source = SourceRecord { node: "a".into(), stream: 0, reverse: true, boot: Some([7; 16]) };
        let volume = VolumeRecord {
            name: "root".into(),
            path: "/v/root.raw".into(),
            size: 4096,
            created: 1,
            epoch: 2,
            standing: StandingRecord::Draining(source),
            move_id: Some("m1".into()),
            handover: None,
            like: Some("data".into()),
        };
        records.put_volume(&volume).expect("put");
        assert_eq!(records.volumes().expect("all"), [volume]);
        records.remove_volume("root").expect("remove");
        assert!(records.volumes().expect("all").is_empty());
        assert_eq!((records.count_start().expect("1"), records.count_start().expect("2")), (1, 2));
    }

    #[test]
    fn the_oldest_impacts_are_forgotten() {
        let records = Records::new(Arc::new(gnomon_store::MemStore::default()));
        for at in 0..IMPACTS as u32 + 3 {
            records.put_impact(&ImpactView { at: f64::from(at), ..ImpactView::now("web") }).expect("put");
        }
        records.put_impact(&ImpactView::now("web-2")).expect("put");
        let kept = records.impacts(Some("web")).expect("all");
        assert_eq!((kept.len(), kept[0].at), (IMPACTS, 3.0));
        assert_eq!(records.impacts(None).expect("all").len(), IMPACTS + 1);
    }

    #[test]
    fn a_record_of_another_kind_is_told() {
        let records = Records::new(Arc::new(gnomon_store::MemStore::default()));
        records.store().put("volume/x", b"{\"name\":7}").expect("put");
        assert_eq!(records.volumes().expect_err("no record").kind, Kind::Corrupt);
    }
}
