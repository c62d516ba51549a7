//! What crosses the API about network cards of VMs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A network card of a VM that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunNic {
    /// The tap that its frames go through, on every node that runs the guest; made when it is not there.
    pub tap: String,
    /// The bridge that the tap is a port of.
    #[serde(default)]
    pub bridge: Option<String>,
    /// Its address; without it, one that is made of the VM's name and the card's place.
    #[serde(default)]
    pub mac: Option<String>,
}

/// A network card, as long as its guest runs here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicView {
    /// Its address.
    pub mac: String,
    /// Where its frames go: `tap:NAME[,bridge=NAME]`.
    pub uplink: String,
    /// Why they do not, when the uplink could not be opened.
    pub why: Option<String>,
    /// Frames of the guest that have left.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that were handed to the guest.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Whether frames of the guest wait until its shadow has the state they come from.
    pub is_holding: bool,
    /// Frames that wait.
    pub held_frames: u64,
    /// Their bytes.
    pub held_bytes: u64,
    /// Frames that were dropped, of either direction: too many waited, the uplink or the guest took none, or they were
    /// no frames.
    pub dropped_frames: u64,
}
