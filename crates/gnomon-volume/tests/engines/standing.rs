//! A volume is opened as its record tells, whatever files a crash has left beside it.

use std::{path::Path, sync::Arc};

use gnomon_terms::{Bytes, Epoch, Instant, ResourceId};
use gnomon_volume::{
    blockmap::{BlockMap, BootId, Lost},
    disk::{Disk, FileDisk, Mode},
    tap::Tap,
    volume::{Standing, Volume, VolumeParts},
};

const SIZE: Bytes = Bytes(1 << 20);

/// A volume of `size` at `path`, with the file that is there or a new one.
pub fn open(path: &Path, size: Bytes, epoch: Epoch, standing: Standing) -> Volume {
    let local = match path.exists() {
        true => FileDisk::open(path, Some(size), Mode::ReadWrite),
        false => FileDisk::create(path, size),
    };
    let parts = VolumeParts {
        name: "root".to_string(),
        resource: ResourceId(1),
        path: path.to_path_buf(),
        local: Arc::new(local.expect("a disk")),
        tap: Arc::new(Tap::new(|| Instant::ORIGIN)),
        boot: BootId::of_this_host().expect("a boot"),
    };
    Volume::open(parts, epoch, standing).expect("a volume")
}

fn open_here(path: &Path, standing: Standing) -> Volume {
    open(path, SIZE, Epoch(2), standing)
}

/// A daemon that died between the record "primary" and the removal of the maps: they say that nothing is owed to a
/// shadow of long ago, and a new one would begin with that.
#[test]
fn a_primary_believes_no_map_of_a_move_that_is_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("root.raw");
    drop(open_here(&path, Standing::Primary));
    let maps = ["root.raw.owed", "root.raw.unflushed", "root.raw.valid"].map(|name| dir.path().join(name));
    for map in &maps {
        let boot = BootId::of_this_host().expect("a boot");
        drop(BlockMap::open(map, SIZE.blocks(), boot, Lost::SetAll).expect("a map of nothing"));
    }
    let volume = open_here(&path, Standing::Primary);
    assert!(maps.iter().all(|map| !map.exists()));
    let owed = volume.begin_shadow().expect("a primary can have a shadow").owed();
    assert_eq!(owed, SIZE.blocks(), "a new shadow is owed everything");
    volume.disk().write_at(&[1], 0).expect("it is the writer");
}

/// A move that is under way keeps its map over a restart.
#[test]
fn a_shadowed_volume_goes_on_with_its_map() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("root.raw");
    let volume = open_here(&path, Standing::Primary);
    volume.begin_shadow().expect("a primary can have a shadow");
    drop(volume);
    let volume = open_here(&path, Standing::Shadowed);
    assert_eq!(volume.outbox().expect("it is shadowed").owed(), SIZE.blocks());
    volume.end_shadow().expect("given up");
    assert!(!dir.path().join("root.raw.owed").exists());
}
