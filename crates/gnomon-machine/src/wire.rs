//! What the engines of a shadow need of a link: to send, and to be told when it is gone.

use gnomon_proto::frame::Message;

/// The link went away while, or before, something was sent. What was sent may or may not have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link to the other node is gone")]
pub struct WireClosed;

/// One end of a session between two nodes. What is sent in one class arrives in order, or not at all.
pub trait Wire: Send + Sync {
    /// Queues a message in its class. Blocks while the queue of that class is full: that is the back-pressure which
    /// lengthens the interval between checkpoints.
    fn send(&self, message: Message) -> Result<(), WireClosed>;
}
