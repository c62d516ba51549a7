//! Bitmaps over blocks, between a block map and the frames that carry it.

use gnomon_link::SessionSender;
use gnomon_proto::{
    bitmap::Bitmap,
    frame::{Message, Stream},
};
use gnomon_terms::{BlockCount, Epoch, Extent};
use gnomon_volume::blockmap::BlockMap;

use super::rpc::lost;
use crate::api::ApiError;

/// The blocks that the next writer will lack: part of a handover.
pub const LACKING: u8 = 0;
/// The blocks that are at the destination: told at the begin of each session.
pub const VALID: u8 = 1;
/// The blocks that are zero at the source: told for a fresh copy, which is zero everywhere.
pub const ZERO: u8 = 2;

/// The set bits of a block map as proto's bitmap.
pub fn of_map(map: &BlockMap) -> Bitmap {
    let mut bitmap = Bitmap::new(map.blocks().0);
    for run in map.runs(map.whole(), true) {
        bitmap.set(run, true);
    }
    bitmap
}

/// The runs of set bits.
pub fn runs(bitmap: &Bitmap) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for block in 0..bitmap.blocks() {
        if !bitmap.get(gnomon_terms::BlockIndex(block)) {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end().0 == block => last.len = BlockCount(last.len.0 + 1),
            _ => runs.push(Extent::new(block, 1)),
        }
    }
    runs
}

/// Sends the set bits of a block map.
pub async fn send(
    sender: &SessionSender,
    stream: Stream,
    epoch: Epoch,
    which: u8,
    map: &BlockMap,
) -> Result<(), ApiError> {
    send_bitmap(sender, stream, epoch, which, &of_map(map)).await
}

/// Sends a bitmap, piece by piece.
pub async fn send_bitmap(
    sender: &SessionSender,
    stream: Stream,
    epoch: Epoch,
    which: u8,
    bitmap: &Bitmap,
) -> Result<(), ApiError> {
    let pieces: Vec<Extent> = bitmap.pieces().collect();
    for extent in pieces {
        let bits = bitmap.piece(extent);
        let message = Message::Bitmap { stream, epoch, which, extent, bits };
        sender.send(message).await.map_err(|error| lost(sender.peer(), &error.to_string()))?;
    }
    Ok(())
}
