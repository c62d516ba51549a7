//! Frames that a guest has sent and that may not leave yet: what strict mode lets out of a card, and when.
//!
//! ```text
//!   offer ──passing, armed───────────────────────────────────► released ──take──► the uplink
//!     └─────holding──► open ──close(n)──► of checkpoint n ──commit(n)──►┘
//!                       ▲                       │                       │
//!                       └────────begin──────────┘      expose───────────┘
//!
//!   passing ──begin──► armed ──close──► holding ──expose──► passing
//!                                          ▲ hold
//! ```
//! A frame may leave once the shadow has a checkpoint of a moment after it was sent: from then on there is no way back to
//! a guest that has not sent it. So frames are gathered in batches: what was sent until the guest stands for checkpoint n
//! is closed under n, and leaves when n is committed. Frames that wait when a session ends are closed anew under the first
//! checkpoint of the next one, which is of a later moment still.
//!
//! The queue is bounded: what comes when it is full is dropped, the newest first, as a network may.
//!
//! Source: B. Cully et al., "Remus: High Availability via Asynchronous Virtual Machine Replication", NSDI 2008, section
//! 2.5 (network buffering).

use std::collections::VecDeque;

use gnomon_terms::Bytes;

/// What a frame costs beside its bytes: its place in the queue and in the allocator. Without it a million of the
/// smallest frames would pass for 14 MiB.
const OVERHEAD: usize = 64;

/// One frame, as it is on the wire, without its checksum.
pub type Frame = Vec<u8>;

/// What is done with a frame that the guest sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stance {
    /// It leaves at once.
    Passing,
    /// It leaves at once, until the guest stands for a checkpoint.
    Armed,
    /// It waits for its checkpoint.
    Holding,
}

/// The frames of one card.
#[derive(Debug)]
pub struct Hold {
    stance: Stance,
    limit: Bytes,
    /// Held, oldest first: those of `batches`, then the open ones.
    held: VecDeque<Frame>,
    /// Checkpoint and number of frames, oldest first.
    batches: VecDeque<(u64, usize)>,
    released: VecDeque<Frame>,
    /// The session whose commits count.
    session: u64,
    held_bytes: u64,
    dropped: u64,
}

impl Hold {
    /// Passes all frames, and will hold `limit` bytes at most.
    pub fn new(limit: Bytes) -> Hold {
        Hold {
            stance: Stance::Passing,
            limit,
            held: VecDeque::new(),
            batches: VecDeque::new(),
            released: VecDeque::new(),
            session: 0,
            held_bytes: 0,
            dropped: 0,
        }
    }

    /// Holds from now on: there is a shadow already, and its session will begin.
    pub fn hold(&mut self) {
        self.stance = Stance::Holding;
    }

    /// A session with the shadow has begun; the caller numbers them. Commits of earlier ones count no more. Frames that
    /// pass go on to pass until the guest stands for the first checkpoint: until then the shadow has nothing of it.
    pub fn begin(&mut self, session: u64) {
        self.session = session;
        self.batches.clear();
        if self.stance == Stance::Passing {
            self.stance = Stance::Armed;
        }
    }

    /// The guest has sent a frame.
    pub fn offer(&mut self, frame: Frame) {
        match self.stance {
            Stance::Passing | Stance::Armed => self.released.push_back(frame),
            Stance::Holding if self.held_bytes + cost(&frame) > self.limit.0 => self.dropped += 1,
            Stance::Holding => {
                self.held_bytes += cost(&frame);
                self.held.push_back(frame);
            }
        }
    }

    /// The guest stands for a checkpoint, and all that it has sent was offered. A number that a checkpoint had which was
    /// never sent may be used again.
    pub fn close(&mut self, checkpoint: u64) {
        match self.stance {
            Stance::Passing => {}
            Stance::Armed => self.stance = Stance::Holding,
            Stance::Holding => {
                let closed: usize = self.batches.iter().map(|(_, frames)| frames).sum();
                self.batches.push_back((checkpoint, self.held.len() - closed));
            }
        }
    }

    /// The shadow has said in this session that it has a checkpoint: what was sent before it leaves.
    pub fn commit(&mut self, session: u64, checkpoint: u64) {
        if session != self.session {
            return;
        }
        while let Some((_, frames)) = self.batches.pop_front_if(|(closed, _)| *closed <= checkpoint) {
            self.release(frames);
        }
    }

    /// The guest goes on without a shadow, and that is on record: all leaves, and what comes passes.
    pub fn expose(&mut self) {
        self.stance = Stance::Passing;
        self.batches.clear();
        self.release(self.held.len());
    }

    /// The next frame that may leave.
    pub fn take(&mut self) -> Option<Frame> {
        self.released.pop_front()
    }

    /// Whether frames wait for their checkpoints.
    pub fn is_holding(&self) -> bool {
        self.stance == Stance::Holding
    }

    /// How many frames wait.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Their bytes.
    pub fn held_bytes(&self) -> Bytes {
        Bytes(self.held.iter().map(|frame| frame.len() as u64).sum())
    }

    /// How many were dropped because too many waited.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn release(&mut self, frames: usize) {
        for frame in self.held.drain(..frames) {
            self.held_bytes -= cost(&frame);
            self.released.push_back(frame);
        }
    }
}

fn cost(frame: &Frame) -> u64 {
    (frame.len() + OVERHEAD) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Event {
        Begin,
        Hold,
        Send,
        Close,
        /// Of the newest checkpoint that was closed, so many before.
        Commit(u64),
        /// Of a session before.
        Stale,
        Expose,
    }

    use Event::{Begin, Close, Commit, Expose, Send, Stale};

    /// A card with room for eight small frames, and what has left it.
    struct Card {
        hold: Hold,
        session: u64,
        checkpoint: u64,
        sent: u8,
        left: Vec<u8>,
    }

    impl Card {
        fn new() -> Card {
            let hold = Hold::new(Bytes(8 * (OVERHEAD as u64 + 1)));
            Card { hold, session: 0, checkpoint: 0, sent: 0, left: Vec::new() }
        }

        fn apply(&mut self, event: &Event) {
            match event {
                Begin => {
                    self.session += 1;
                    self.hold.begin(self.session);
                }
                Event::Hold => self.hold.hold(),
                Send => {
                    self.hold.offer(vec![self.sent]);
                    self.sent = self.sent.wrapping_add(1);
                }
                Close => {
                    self.checkpoint += 1;
                    self.hold.close(self.checkpoint);
                }
                Commit(before) => self.hold.commit(self.session, self.checkpoint.saturating_sub(*before)),
                Stale => self.hold.commit(self.session.wrapping_sub(1), self.checkpoint),
                Expose => self.hold.expose(),
            }
            self.left.extend(std::iter::from_fn(|| self.hold.take()).map(|frame| frame[0]));
        }
    }

    #[test]
    fn frames_leave_when_their_checkpoint_is_committed() {
        type Row = (&'static str, &'static [Event], &'static [u8]);
        let table: [Row; 12] = [
            ("without a shadow", &[Send, Close, Send], &[0, 1]),
            ("before the first checkpoint", &[Begin, Send], &[0]),
            ("after the guest stood for it", &[Begin, Send, Close, Send], &[0]),
            ("its commit is of a moment before", &[Begin, Close, Send, Commit(0)], &[]),
            ("the next one contains it", &[Begin, Close, Send, Close, Commit(0)], &[0]),
            ("one of two", &[Begin, Close, Send, Close, Send, Close, Commit(1)], &[0]),
            ("the newer commit counts for both", &[Begin, Close, Send, Close, Send, Close, Commit(0)], &[0, 1]),
            ("a new session asks for a new checkpoint", &[Begin, Close, Send, Close, Begin, Commit(0)], &[]),
            ("which contains all", &[Begin, Close, Send, Close, Begin, Send, Close, Commit(0)], &[0, 1]),
            ("an old session's word", &[Begin, Close, Send, Close, Begin, Close, Stale], &[]),
            ("lost, on record", &[Begin, Close, Send, Close, Send, Expose, Send], &[0, 1, 2]),
            ("found again after a restart", &[Event::Hold, Send, Begin, Send, Close, Send, Commit(0)], &[0, 1]),
        ];
        for (name, events, left) in table {
            let mut card = Card::new();
            events.iter().for_each(|event| card.apply(event));
            assert_eq!(card.left, left, "{name}");
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_dropped_and_counted() {
        let mut card = Card::new();
        [Begin, Close].iter().for_each(|event| card.apply(event));
        (0..10).for_each(|_| card.apply(&Send));
        assert_eq!((card.hold.held(), card.hold.held_bytes(), card.hold.dropped()), (8, Bytes(8), 2));
        [Close, Commit(0), Send].iter().for_each(|event| card.apply(event));
        assert_eq!((card.left.as_slice(), card.hold.held()), ([0, 1, 2, 3, 4, 5, 6, 7].as_slice(), 1));
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            1 => Just(Begin),
            8 => Just(Send),
            4 => Just(Close),
            4 => (0u64..4).prop_map(Commit),
            1 => Just(Stale),
            1 => Just(Expose),
            1 => Just(Event::Hold),
        ]
    }

    /// What is known of a frame from outside.
    struct Sent {
        /// Whether it may leave: it was sent while frames pass, or a checkpoint of a later moment was committed in the
        /// session that it was taken in, or the loss was recorded since.
        free: bool,
        /// The first checkpoint after it in the session that goes on.
        within: Option<u64>,
    }

    proptest! {
        /// Nothing leaves before its checkpoint is committed, nothing stays that may leave, the order is kept, and never
        /// more is held than is allowed.
        #[test]
        fn nothing_leaves_early_and_the_order_stays(events in proptest::collection::vec(event(), 0..120)) {
            let (mut card, mut sent, mut holding, mut armed) = (Card::new(), Vec::<Sent>::new(), false, false);
            for event in &events {
                match event {
                    Begin => {
                        sent.iter_mut().for_each(|frame| frame.within = None);
                        armed |= !holding;
                    }
                    Event::Hold => (holding, armed) = (true, false),
                    Send => sent.push(Sent { free: !holding, within: None }),
                    Close => {
                        let next = card.checkpoint + 1;
                        sent.iter_mut().filter(|_| holding).for_each(|frame| _ = frame.within.get_or_insert(next));
                        (holding, armed) = (holding || armed, false);
                    }
                    Commit(before) => {
                        let has = card.checkpoint.saturating_sub(*before);
                        let contained = |frame: &&mut Sent| frame.within.is_some_and(|within| within <= has);
                        sent.iter_mut().filter(contained).for_each(|frame| frame.free = true);
                    }
                    Stale => {}
                    Expose => {
                        sent.iter_mut().for_each(|frame| frame.free = true);
                        (holding, armed) = (false, false);
                    }
                }
                card.apply(event);
                prop_assert!(card.left.is_sorted_by(|one, next| one < next), "{:?}", card.left);
                prop_assert!(card.left.iter().all(|frame| sent[usize::from(*frame)].free), "{:?}", card.left);
                prop_assert!(card.hold.held() <= 8);
                let free = sent.iter().filter(|frame| frame.free).count() as u64;
                prop_assert!(card.left.len() as u64 + card.hold.dropped() >= free, "what may leave has left");
                prop_assert_eq!(card.left.len() + card.hold.held() + card.hold.dropped() as usize, sent.len());
            }
        }
    }
}
