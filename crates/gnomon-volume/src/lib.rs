//! A guest's disk, and its move to another host.
//!
//! Seven rooms, in the order a request meets them:
//!
//! - [`front`] decodes a request: NBD or vhost-user-blk;
//! - [`serve`] checks it against its export and asks the [`disk`] for the best copy;
//! - [`tap`] notes the access in passing;
//! - [`mover`] carries what the loop asks for, at the source of a move;
//! - [`shadow`] is the receiving side, at the destination;
//! - [`standby`] keeps the second copy of a protected guest's disk, checkpoint by checkpoint;
//! - [`verify`] compares the two copies while all of this goes on.
//!
//! Between them: [`outbox`] (what the peer lacks), [`blockmap`] (one bit for each block, surviving a killed daemon)
//! and [`stripes`] (content and bits change together).
//!
//! Invariant: nothing in here knows a forecast. A move says what, where, by when; never why.

pub mod blockmap;
pub mod disk;
pub mod front;
pub mod import;
pub mod mover;
pub mod outbox;
pub mod plane;
pub mod serve;
pub mod shadow;
pub mod standby;
pub mod stripes;
pub mod tap;
pub mod verify;
pub mod volume;
pub mod wire;
