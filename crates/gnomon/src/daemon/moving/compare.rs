//! Comparing what both sides have, at the begin of each session: nothing in flight needs to survive a crash, because
//! everything is looked at anew.

use gnomon_forecast::BlockMap;
use gnomon_proto::{
    bitmap::Bitmap,
    frame::{Message, Stream},
};
use gnomon_terms::{BlockCount, Extent};
use gnomon_volume::{outbox::Outbox, stripes::split, volume::Volume};

use super::{
    hub::{Hub, Inbox},
    maps,
};
use crate::api::ApiError;

/// What the destination said it has of a volume: the bitmap that came before the answer to the opening.
pub fn received(inbox: &mut Inbox, blocks: BlockCount, stream: Stream) -> Result<Bitmap, ApiError> {
    let mut valid = Bitmap::new(blocks.0);
    while let Ok(message) = inbox.control.try_recv() {
        if let Message::Bitmap { stream: of, which: maps::VALID, extent, bits, .. } = message
            && of == stream
        {
            valid.adopt(extent, &bits)?;
        }
    }
    Ok(valid)
}

/// A copy that begins: it has nothing but the zeroes of a new file, so the blocks that are zero here are told once
/// and need no carrying.
pub async fn begin_fresh(
    hub: &Hub,
    volume: &Volume,
    stream: Stream,
    allocated: &[Extent],
    outbox: &Outbox,
) -> Result<(), ApiError> {
    let whole = Extent::new(0, volume.blocks().0);
    each_piece(volume, whole, |piece| outbox.owe(piece));
    let mut zero = Bitmap::new(whole.len.0);
    zero.set(whole, true);
    for extent in allocated {
        zero.set(*extent, false);
    }
    // A block that is written from now on is owed again: take first, look at what was allocated before.
    for run in maps::runs(&zero) {
        each_piece(volume, run, |piece| {
            outbox.take(piece);
        });
    }
    for extent in volume.allocated()? {
        zero.set(extent, false);
    }
    let epoch = volume.disk().state().0;
    maps::send_bitmap(&hub.sender(), stream, epoch, maps::ZERO, &zero).await?;
    for run in maps::runs(&zero) {
        each_piece(volume, run, |piece| outbox.acknowledge(piece));
    }
    Ok(())
}

/// A copy that goes on while the guest is here: what the destination lacks is owed, whatever we believed.
pub fn go_on_priming(volume: &Volume, outbox: &Outbox, valid: &Bitmap) {
    for run in missing(valid) {
        each_piece(volume, run, |piece| outbox.owe(piece));
    }
}

/// A move that goes on while the guest is there: the destination knows exactly what it lacks.
pub fn go_on_draining(volume: &Volume, outbox: &Outbox, valid: &Bitmap) {
    for run in maps::runs(valid) {
        each_piece(volume, run, |piece| {
            outbox.take(piece);
            outbox.acknowledge(piece);
        });
    }
    go_on_priming(volume, outbox, valid);
}

/// What is owed, as the loop wants it.
pub fn lacking(volume: &Volume, outbox: &Outbox) -> BlockMap {
    let mut map = BlockMap::empty(volume.blocks());
    for run in outbox.owed_runs(Extent::new(0, volume.blocks().0)) {
        map.insert(run);
    }
    map
}

/// Every block of a volume: what the guest has made of it by the switch is carried whatever it is.
pub fn full(volume: &Volume) -> BlockMap {
    let mut map = BlockMap::empty(volume.blocks());
    map.insert(Extent::new(0, volume.blocks().0));
    map
}

fn missing(valid: &Bitmap) -> Vec<Extent> {
    let mut missing = Bitmap::new(valid.blocks());
    missing.set(Extent::new(0, valid.blocks()), true);
    for run in maps::runs(valid) {
        missing.set(run, false);
    }
    maps::runs(&missing)
}

/// Calls `deed` with each piece of an extent, under the lock of its stripe.
fn each_piece(volume: &Volume, extent: Extent, deed: impl Fn(Extent)) {
    for piece in split(extent) {
        let _guard = volume.stripes().lock(piece);
        deed(piece);
    }
}
