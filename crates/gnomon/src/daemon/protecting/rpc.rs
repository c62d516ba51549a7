//! Questions between a primary and the node of its shadow. They travel as the `shadow` question of a session.

use serde::{Deserialize, Serialize};

/// What the two sides of a protection ask each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub enum Ask {
    /// By a primary: what became of this protection there? Answered by [`Fate`].
    Fate {
        /// Names the protection on both nodes.
        id: String,
    },
    /// By a primary: keep the shadow of this guest, or find the one that is kept; checkpoints follow as frames. Answered
    /// by [`Kept`].
    Keep {
        /// Names the protection on both nodes.
        id: String,
        /// The epoch in which the guest runs at its primary.
        epoch: u64,
        /// The guest, as the primary's QEMU runs it.
        spec: Box<gnomon_qemu::VmSpec>,
        /// The guest, settled on the primary's host.
        resolved: gnomon_qemu::Resolved,
        /// Its disks, by their number in the session.
        disks: Vec<Disk>,
        /// As on record at the primary.
        #[serde(default)]
        strict: bool,
        /// As on record at the primary.
        #[serde(default)]
        lease_s: Option<u64>,
        /// The nodes of the guest's other shadows.
        #[serde(default)]
        siblings: Vec<String>,
        /// How often a daemon has begun to checkpoint the guest; checkpoints are numbered anew in each.
        #[serde(default)]
        generation: u64,
    },
    /// By a primary: give up the checkpoint that is there, so that the memory can be filled anew without a stage.
    StartOver,
    /// By a primary whose guest stands: load the devices of this checkpoint, the last one.
    Ready {
        /// Which.
        checkpoint: u64,
    },
    /// By a primary that has given its guest away: run it at this epoch. Answered by [`TakenOver`].
    TakeOver {
        /// Names the protection on both nodes.
        id: String,
        /// The epoch at which it was given.
        epoch: u64,
    },
    /// By a primary: the shadow is not wanted any more.
    Forget {
        /// Names the protection on both nodes.
        id: String,
    },
    /// By a shadow that is to take over from a primary that is said to be fenced. Answered by [`Yielded`].
    Yield {
        /// Names the protection on both nodes.
        id: String,
        /// The VM.
        vm: String,
        /// The epoch at which the shadow would run it.
        epoch: u64,
    },
    /// By a primary: these nodes have the guest's other shadows from now on. Answered when that is on record.
    Siblings {
        /// Names the protection on all nodes.
        id: String,
        /// Which.
        nodes: Vec<String>,
    },
    /// By the node of another shadow, which is to take over: does this one leave the guest to it? Answered by [`Ceded`].
    Cede {
        /// Names the protection on all nodes.
        id: String,
    },
    /// By a primary, or the node of another shadow: the guest lives there by now, and this shadow is of no more use.
    Superseded {
        /// Names the protection on all nodes.
        id: String,
        /// The node where it lives.
        by: String,
    },
    /// By a shadow that is alone: is it still wanted? Answered by yes or no.
    Wanted {
        /// Names the protection on both nodes.
        id: String,
        /// The VM.
        vm: String,
    },
}

/// A disk of a protected guest, as its primary says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The volume.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that have to be stored.
    pub needed: u64,
    /// Bytes that the shadow is not known to have.
    pub owed: u64,
    /// The volume's epoch.
    pub epoch: u64,
}

/// What became of a protection at the shadow's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "fate")]
pub enum Fate {
    /// The guest lives there from this epoch on: the primary has lost it.
    Promoted {
        /// Which.
        epoch: u64,
    },
    /// The guest was loaded there, and waits to be told to run.
    Ready,
    /// It is a shadow, or was one and has nothing now, or was never heard of: it runs only if a primary says so, or an
    /// operator.
    Shadow,
}

/// The answer to [`Ask::Cede`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ceded")]
pub enum Ceded {
    /// The guest lives here from this epoch on.
    Promoted {
        /// Which.
        epoch: u64,
    },
    /// This one is just taking over.
    Busy,
    /// This one does not run it, and asks anew before it does.
    Free {
        /// The checkpoint that is here: its epoch, its generation and its number.
        has: Option<(u64, u64, u64)>,
    },
}

/// The answer to [`Ask::Keep`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The checkpoint that is there: its epoch and its number.
    pub has: Option<(u64, u64)>,
    /// How many pages are kept aside for a checkpoint.
    pub stage: u64,
    /// What is there of each disk.
    pub disks: Vec<gnomon_volume::standby::Has>,
}

/// The answer to [`Ask::TakeOver`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakenOver {
    /// The checkpoint it runs from.
    pub checkpoint: u64,
    /// Milliseconds that the devices took to load, before.
    pub loading_ms: f64,
    /// Milliseconds until the volumes were its own.
    pub claiming_ms: f64,
    /// Milliseconds to make it run.
    pub starting_ms: f64,
}

/// The answer to [`Ask::Yield`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Yielded {
    /// The guest runs there: nothing is fenced.
    Runs,
    /// The guest does not run there, and that node has given it up for good.
    GaveUp,
    /// That node does not protect it, or not any more.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_read_back() {
        let questions = [
            Ask::StartOver,
            Ask::Ready { checkpoint: 7 },
            Ask::TakeOver { id: "a-1-1".into(), epoch: 2 },
            Ask::Yield { id: "a-1-1".into(), vm: "web".into(), epoch: 2 },
            Ask::Siblings { id: "a-1-1".into(), nodes: vec!["c".into()] },
            Ask::Cede { id: "a-1-1".into() },
            Ask::Superseded { id: "a-1-1".into(), by: "c".into() },
        ];
        for question in questions {
            let text = serde_json::to_string(&question).expect("json");
            assert_eq!(serde_json::from_str::<Ask>(&text).expect("a question"), question, "{text}");
        }
        for ceded in [Ceded::Promoted { epoch: 3 }, Ceded::Busy, Ceded::Free { has: Some((1, 2, 3)) }] {
            let text = serde_json::to_string(&ceded).expect("json");
            assert_eq!(serde_json::from_str::<Ceded>(&text).expect("an answer"), ceded, "{text}");
        }
        for fate in [Fate::Promoted { epoch: 3 }, Fate::Ready, Fate::Shadow] {
            let text = serde_json::to_string(&fate).expect("json");
            assert_eq!(serde_json::from_str::<Fate>(&text).expect("an answer"), fate, "{text}");
        }
        assert!(serde_json::from_str::<Ask>(r#"{"about":"dance"}"#).is_err());
    }
}
