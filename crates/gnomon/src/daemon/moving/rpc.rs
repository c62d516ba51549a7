//! Questions between two daemons: JSON in the request and reply frames of a session.
//!
//! Bulk never travels here. A question that the other side does not know is an error of the other side's version and
//! is said so; a reply that nobody waits for is passed over.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use gnomon_link::SessionSender;
use gnomon_proto::frame::Message;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use crate::api::ApiError;

/// How long an answer may take. Launching a QEMU that waits for a guest takes the longest: a second or two.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What the source of a move asks of the destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Make room for a volume, or find the one of an interrupted move; then say which blocks are there by `Bitmap`
    /// frames of the volume's stream, and reply.
    Open {
        /// Names the move on both nodes.
        move_id: String,
        /// The volume.
        volume: String,
        /// Its size in bytes.
        size: u64,
        /// Bytes that will have to be stored.
        needed: u64,
        /// Its epoch at the source.
        epoch: u64,
        /// Its number in sessions of this move.
        stream: u32,
        /// Whether the guest's writes are to be mirrored back.
        reverse: bool,
        /// The kernel that runs at the source: after a reboot it has lost what was not flushed there. A source that does
        /// not tell counts as rebooted in every session.
        #[serde(default)]
        boot: Option<[u8; 16]>,
    },
    /// How far is it?
    State {
        /// Which volume.
        stream: u32,
    },
    /// Start a QEMU that waits for this guest; its memory comes as `Ram` frames.
    Incoming {
        /// The guest, as the source's QEMU runs it.
        spec: Box<gnomon_qemu::VmSpec>,
        /// The guest, settled on the source's host.
        resolved: gnomon_qemu::Resolved,
    },
    /// Make memory for this guest and start a QEMU that waits on it; checkpoints come as frames.
    Receive {
        /// Names the move on both nodes.
        move_id: String,
        /// The guest, as the source's QEMU runs it.
        spec: Box<gnomon_qemu::VmSpec>,
        /// The guest, settled on the source's host.
        resolved: gnomon_qemu::Resolved,
    },
    /// By a source whose guest stands: load the devices of this checkpoint, the last one. The guest runs by itself once all of its
    /// volumes were given.
    Load {
        /// Its VM.
        vm: String,
        /// Which.
        checkpoint: u64,
    },
    /// Wait until the guest runs here.
    Running,
    /// Does this guest run there?
    HasGuest {
        /// Its name.
        vm: String,
    },
    /// End the QEMU that waits: the guest stays where it is.
    Withdraw {
        /// Its VM: it may have been loaded in an earlier session.
        #[serde(default)]
        vm: Option<String>,
    },
    /// Everything is there: the source is no longer needed.
    Release {
        /// Which volume.
        stream: u32,
    },
    /// Answer the hash questions of a stream from the volume of this name. For a session that is for nothing else.
    Compare {
        /// The volume.
        volume: String,
        /// Its size in bytes.
        size: u64,
        /// Its number in this session.
        stream: u32,
    },
    /// Could a volume come? Nothing is changed.
    Survey {
        /// The volume.
        volume: String,
        /// Bytes that would have to be stored.
        needed: u64,
    },
    /// Nothing: how long the answer takes tells how fast the link is.
    Probe {
        /// Of no meaning.
        pad: String,
    },
    /// The move is off: forget the spare copy.
    Abandon {
        /// Which volume.
        stream: u32,
    },
    /// Begin to hand a volume back: `Prepare` follows, or `Commit` when it was decided before, which the answer tells.
    HandBack {
        /// Which volume.
        stream: u32,
    },
    /// Stop writing to every volume that is being handed back, send what is owed, and decide: `Commit` follows.
    Yield,
    /// The volume is back at its source, on record, at this epoch: forget the copy.
    LetGo {
        /// Names the move on both nodes.
        move_id: String,
        /// The volume.
        volume: String,
        /// Its epoch at the source.
        epoch: u64,
    },
    /// How is this guest built?
    Guest {
        /// Its name.
        vm: String,
    },
    /// Begin to send this guest: its memory comes as `Ram` frames.
    SendGuest {
        /// Its name.
        vm: String,
    },
    /// Does the guest that is sent stand? Waits a tenth of a second for it.
    Standing,
    /// Send the rest of the guest.
    SendRest,
    /// The guest stays: let it run.
    KeepGuest,
    /// The guest has gone: end its QEMU.
    EndGuest {
        /// Its name.
        vm: String,
    },
    /// Asked by a destination that was away: is this move still on?
    Fate {
        /// Names the move on both nodes.
        move_id: String,
    },
    /// About a VM and its shadow.
    Shadow {
        /// What is asked.
        question: crate::daemon::protecting::Ask,
    },
    /// Told by a destination that was confirmed without the source, which was gone: is it understood there?
    Overruled {
        /// Names the move on both nodes.
        move_id: String,
        /// The volume.
        volume: String,
        /// Its epoch at the destination.
        epoch: u64,
    },
}

/// The answer to [`Ask::Guest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Built {
    /// The guest, as its QEMU runs it.
    pub spec: gnomon_qemu::VmSpec,
    /// The guest, settled on its host.
    pub resolved: gnomon_qemu::Resolved,
}

/// The answer to [`Ask::Fate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes on: its source will begin a session.
    On,
    /// It was rolled back without the destination, which is the writer no more.
    Undone,
    /// Nothing is known of it here.
    Unknown,
}

/// The answer to [`Ask::Open`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// True when the copy was made just now: it reads as zeroes everywhere.
    pub fresh: bool,
    /// What the volume is there.
    pub role: String,
    /// Its epoch there.
    pub epoch: u64,
}

/// The answer to [`Ask::Survey`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surveyed {
    /// Bytes free where volumes are.
    pub free: u64,
    /// Why it could not come.
    pub refused: Option<ApiError>,
}

/// Where the destination is with a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What it is there.
    pub role: String,
    /// Its epoch there.
    pub epoch: u64,
    /// Blocks that are not there yet.
    pub missing: u64,
    /// Blocks written there that the source lacks.
    pub owed: u64,
    /// Why a copy could not be stored lately.
    pub fault: Option<String>,
    /// Whether flushes no longer wait for the source.
    pub degraded: bool,
    /// Reads that were made there since the session began.
    pub reads: u64,
}

/// The asking side of a session.
pub struct Rpc {
    sender: SessionSender,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answered>>>,
}

/// The body of an answer, or of an error.
type Answered = Result<Vec<u8>, Vec<u8>>;

impl Rpc {
    /// Asks over `sender`; replies are handed in by [`Rpc::replied`].
    pub fn new(sender: SessionSender) -> Rpc {
        Rpc { sender, next: AtomicU64::new(1), waiting: Mutex::default() }
    }

    /// Asks, and waits for the answer.
    pub async fn ask<A: DeserializeOwned>(&self, question: &Ask) -> Result<A, ApiError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let body = serde_json::to_vec(question).map_err(ApiError::internal)?;
        let (tell, answer) = oneshot::channel();
        self.waiting.lock().insert(id, tell);
        self.sender
            .send(Message::Request { id, body })
            .await
            .map_err(|e| lost(self.sender.peer(), &e.to_string()))?;
        let answered = tokio::time::timeout(ANSWER_WITHIN, answer).await;
        self.waiting.lock().remove(&id);
        match answered {
            Ok(Ok(Ok(body))) => serde_json::from_slice(&body).map_err(ApiError::internal),
            Ok(Ok(Err(body))) => Err(serde_json::from_slice(&body).unwrap_or_else(|_| {
                lost(self.sender.peer(), "it answered with an error that cannot be read; is it the same version?")
            })),
            Ok(Err(_)) => Err(lost(self.sender.peer(), "the link ended")),
            Err(_) => Err(lost(self.sender.peer(), "it did not answer within a minute")),
        }
    }

    /// A reply has come.
    pub fn replied(&self, id: u64, ok: bool, body: Vec<u8>) {
        if let Some(tell) = self.waiting.lock().remove(&id) {
            // Whoever asked may have given up.
            let _ = tell.send(if ok { Ok(body) } else { Err(body) });
        }
    }

    /// The session is over: nobody will be answered.
    pub fn end(&self) {
        self.waiting.lock().clear();
    }
}

/// Answers a question.
pub async fn reply<A: Serialize>(sender: &SessionSender, id: u64, answer: Result<A, ApiError>) {
    let (ok, body) = match answer {
        Ok(answer) => (true, serde_json::to_vec(&answer)),
        Err(error) => (false, serde_json::to_vec(&error)),
    };
    // A session that ends meanwhile tells the asker by itself.
    let _ = sender.send(Message::Reply { id, ok, body: body.unwrap_or_default() }).await;
}

/// The peer cannot be reached; the move goes on when it can.
pub fn lost(peer: &str, why: &str) -> ApiError {
    ApiError::unavailable(format!("node {peer} cannot be reached: {why}"))
        .then("the move goes on by itself when the node is back; cancel it with --cancel while it is priming")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_back_as_they_were_asked() {
        let load = Ask::Load { vm: "web".into(), checkpoint: 3 };
        let questions = [Ask::Running, Ask::State { stream: 3 }, Ask::Release { stream: 1 }, load];
        for question in questions {
            let text = serde_json::to_string(&question).expect("json");
            assert_eq!(serde_json::from_str::<Ask>(&text).expect("question"), question, "{text}");
        }
        assert!(serde_json::from_str::<Ask>(r#"{"ask":"dance"}"#).is_err());
    }

    #[test]
    fn a_source_that_names_no_vm_withdraws_that_of_the_session() {
        let ask = serde_json::from_str::<Ask>(r#"{"ask":"withdraw"}"#).expect("a question");
        assert_eq!(ask, Ask::Withdraw { vm: None });
    }

    #[test]
    fn a_source_that_does_not_tell_its_boot_is_understood() {
        let asked =
            r#"{"ask":"open","move_id":"m","volume":"v","size":1,"needed":0,"epoch":1,"stream":0,"reverse":true}"#;
        let ask = serde_json::from_str::<Ask>(asked).expect("a question");
        assert!(matches!(ask, Ask::Open { boot: None, .. }), "{ask:?}");
    }
}
