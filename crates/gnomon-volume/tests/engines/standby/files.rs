//! A standby with the files that users have: from a primary's volume to one that is written at the shadow's node.

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use gnomon_proto::frame::Stream;
use gnomon_terms::{Bytes, Epoch, Extent};
use gnomon_volume::{
    disk::Disk,
    standby::{self, Lineage, ReceiverParts, SenderError, SenderParts, StandbyReceiver, StandbySender},
    volume::{Standing, Volume},
};

use super::rig::LONG;
use crate::{
    pair::{channel, pump},
    standing::open,
};

const SIZE: Bytes = Bytes(32 << 20);
const STREAM: Stream = Stream(2);
const JOURNAL: Option<Bytes> = Some(Bytes(4 << 20));

fn volume(path: &Path, epoch: u64, standing: Standing) -> Volume {
    open(path, SIZE, Epoch(epoch), standing)
}

/// Brings the standby to the primary's disk of now, as turn `turn`.
fn follow(primary: &Volume, receiver: &Arc<StandbyReceiver>, turn: u64) {
    let cut = Arc::new(AtomicBool::new(false));
    let (to_shadow, at_shadow) = channel(&cut);
    let (to_primary, at_primary) = channel(&cut);
    let owed = primary.standby("b").expect("tracked").outbox.owed().bytes();
    let has = receiver.begin(Lineage::of("p@b"), Epoch(1), owed, Arc::new(to_primary)).expect("begun");
    assert_eq!(has.sealed, (turn > 1).then_some(turn - 1));
    let parts = SenderParts::of(primary, "b", STREAM, Epoch(1), Arc::new(to_shadow)).expect("tracked");
    let sender = StandbySender::start(parts, &has);
    let (engine, shadow) = (Arc::clone(&sender), Arc::clone(receiver));
    let mut pumps = pump(at_primary, &cut, move |message| engine.handle(message));
    pumps.extend(pump(at_shadow, &cut, move |message| shadow.handle(message).expect("a good frame")));
    assert!(sender.await_in_step(LONG).expect("in step"));
    sender.mark(turn).expect("marked");
    receiver.await_whole(turn, LONG).expect("arrived");
    receiver.seal(turn).expect("sealed");
    receiver.apply(turn).expect("applied");
    while sender.state().sealed != Some(turn) {
        std::thread::yield_now();
    }
    assert_eq!(sender.state().owed.0, 0);
    cut.store(true, Ordering::SeqCst);
    sender.stop();
    receiver.end();
    pumps.into_iter().for_each(|pump| pump.join().expect("pump"));
}

#[test]
fn a_volume_goes_on_at_the_shadow_from_the_last_sealed_turn() {
    let dir = tempfile::tempdir().expect("a folder");
    let (here, there) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
    let primary = volume(&here, 1, Standing::Primary);
    let shadow = volume(&there, 1, Standing::Fenced("a".to_string()));
    shadow.await_return().expect("a QEMU may look at it");
    let receiver =
        StandbyReceiver::open(ReceiverParts::of(&shadow, STREAM, JOURNAL).expect("a journal")).expect("new");
    primary.disk().write_at(&[1; 100_000], 5_000_000).expect("written before it was protected");
    let wire = Arc::new(channel(&Arc::new(AtomicBool::new(true))).0);
    let untracked = SenderParts::of(&primary, "b", STREAM, Epoch(1), wire).err().expect("it notes no writes");
    assert!(matches!(untracked, SenderError::NotTracked { .. }), "{untracked}");
    primary.begin_standby("b").expect("protected");
    follow(&primary, &receiver, 1);
    let allocated = std::fs::metadata(&there).expect("there").blocks() * 512;
    assert!(allocated < 1 << 20, "{allocated} bytes for 100 000: thin stays thin");

    // The shadow's daemon restarts; the next session carries what was written since.
    drop(receiver);
    primary.disk().write_at(&[2; 9000], 123).expect("written");
    let receiver =
        StandbyReceiver::open(ReceiverParts::of(&shadow, STREAM, None).expect("a journal")).expect("opened");
    assert_eq!(receiver.sealed(), Some(1));
    follow(&primary, &receiver, 2);
    primary.disk().write_at(&[3; 9000], 123).expect("written, and never sealed");

    // The primary is lost.
    assert!(shadow.disk().write_at(&[9], 0).is_err(), "fenced until it is taken over");
    assert_eq!(receiver.take_over().expect("taken over"), 2);
    shadow.take_back(Epoch(2)).expect("the writer");
    standby::forget(&there).expect("forgotten");
    let mut bytes = vec![0; 9000];
    shadow.disk().read_at(&mut bytes, 123).expect("read");
    assert!(bytes.iter().all(|byte| *byte == 2));
    shadow.disk().write_at(&[4; 10], 0).expect("it is the writer");
    assert!(!dir.path().join("b.raw.standby").exists());
}

#[test]
fn what_each_of_two_standbys_lacks_is_known_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let here = dir.path().join("a.raw");
    let primary = volume(&here, 1, Standing::Primary);
    let owed = |volume: &Volume, node: &str| volume.standby(node).map(|standby| standby.outbox.owed().bytes());
    for node in ["b", "c.row2"] {
        let standby = primary.begin_standby(node).expect("protected");
        assert_eq!(owed(&primary, node), Some(SIZE), "a new one is owed everything");
        standby.outbox.forgive(standby.outbox.map().whole());
    }
    assert!(primary.begin_shadow().is_err(), "it is not moved meanwhile");
    primary.disk().write_at(&[1; 4096], 0).expect("written");
    primary.standby("b").expect("there").outbox.forgive(Extent::new(0, 1));
    primary.disk().write_at(&[1; 8192], 4096).expect("written");
    drop(primary);

    let primary = volume(&here, 1, Standing::Shadowed);
    assert_eq!((owed(&primary, "b"), owed(&primary, "c.row2")), (Some(Bytes(8192)), Some(Bytes(12288))));
    primary.end_standby("b").expect("given up");
    primary.disk().write_at(&[1; 4096], 65536).expect("written");
    assert_eq!((owed(&primary, "b"), owed(&primary, "c.row2")), (None, Some(Bytes(16384))));
    primary.end_standby("c.row2").expect("given up");
    let files = std::fs::read_dir(dir.path()).expect("a folder").count();
    assert_eq!((files, primary.disk().state().1.name()), (1, "primary"));
}
