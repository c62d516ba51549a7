//! The primary's QEMU is killed, the link is cut, a checkpoint is torn: the shadow goes on from one that was whole.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use gnomon_machine::{
    primary::{ReplicateError, Resume},
    shadow::{Limits, ShadowError},
    stage::StageError,
    wire::{Wire, WireClosed},
};
use gnomon_proto::frame::Message;
use gnomon_terms::{Bytes, Epoch, PageCount};

use crate::{
    link::Link,
    protect::{EPOCH, Protected, STREAM},
};

/// When the primary's QEMU dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    Idle,
    /// While its guest stands, before it goes on.
    Standing,
    /// When the first pages, or the first devices, or the seal of a checkpoint are about to be sent.
    Pages,
    Devices,
    Seal,
    AfterSeal,
}

impl Moment {
    fn is_now(self, message: &Message) -> bool {
        match message {
            Message::Pages { .. } => self == Moment::Pages,
            Message::Device { .. } => self == Moment::Devices,
            Message::Seal { .. } => self == Moment::Seal,
            _ => false,
        }
    }
}

/// Kills the primary at a moment of its `of`th checkpoint, and takes over.
fn die(moment: Moment, of: u64) {
    let mut guest = Protected::start(Limits::default());
    for _ in 1..of {
        guest.checkpoint_after_ticks();
    }
    guest.await_ticks();
    let killed = Arc::new(AtomicBool::new(false));
    let kill = {
        let (qemu, killed) = (guest.qemu.clone(), killed.clone());
        move |now: bool| {
            if now && !killed.swap(true, SeqCst) {
                qemu.kill().expect("killed");
            }
        }
    };
    let (while_standing, at_message) = (kill.clone(), kill.clone());
    *guest.while_standing.lock().unwrap() = Some(Box::new(move || while_standing(moment == Moment::Standing)));
    guest.link.on_message(move |message| at_message(moment.is_now(message)));
    kill(moment == Moment::Idle);
    let told = guest.primary.checkpoint();
    kill(moment == Moment::AfterSeal);
    assert!(killed.load(SeqCst), "{moment:?} has come");
    // What was captured before the guest died is whole, and is sealed after its death.
    let sealed = if matches!(moment, Moment::Idle | Moment::Standing) { of - 1 } else { of };
    assert_eq!(told.as_ref().map_or(of - 1, |told| told.checkpoint), sealed, "{moment:?}: {told:?}");
    assert_eq!(guest.shadow.lock().unwrap().has(), Some((EPOCH, sealed)), "{moment:?}");
    guest.assert_shadow_is(sealed);
    assert_eq!(guest.take_over(), sealed);
}

#[test]
fn a_primary_that_dies_idle() {
    die(Moment::Idle, 3);
}

#[test]
fn a_primary_that_dies_while_it_stands() {
    die(Moment::Standing, 3);
}

#[test]
fn a_primary_that_dies_while_a_checkpoint_is_sent() {
    die(Moment::Pages, 2);
    die(Moment::Devices, 3);
    die(Moment::Seal, 4);
}

#[test]
fn a_primary_that_dies_right_after_a_seal() {
    die(Moment::AfterSeal, 2);
}

/// The primary's host dies with its QEMU: nothing more is sent.
#[test]
fn a_host_that_dies_in_the_midst_of_a_checkpoint() {
    for after in 1..4 {
        let mut guest = Protected::start(Limits::default());
        guest.checkpoint_after_ticks();
        guest.await_ticks();
        guest.link.left.store(after, SeqCst);
        // With the last message, which is the third or the fourth, its answer is lost, and no one asks for it.
        let _ = guest.primary.checkpoint();
        guest.qemu.kill().expect("killed");
        let (_, sealed) = guest.shadow.lock().unwrap().has().expect("one at least");
        guest.assert_shadow_is(sealed);
        assert_eq!(guest.take_over(), sealed);
    }
}

#[test]
fn a_link_that_returns_goes_on_where_it_was() {
    let mut guest = Protected::start(Limits::default());
    let first = guest.checkpoint_after_ticks();
    guest.checkpoint_after_ticks();
    guest.await_ticks();
    guest.link.left.store(1, SeqCst);
    let error = guest.primary.checkpoint().expect_err("the link is cut");
    assert!(matches!(error, ReplicateError::Link(_)), "{error}");
    assert!(guest.qemu.qmp().query_status().expect("answers").running, "the guest is not disturbed");
    assert_eq!(guest.shadow.lock().unwrap().has(), Some((EPOCH, 2)));
    guest.assert_shadow_is(2);
    let (link, resume) = Link::connect(&mut guest.primary, &guest.shadow, EPOCH);
    guest.link = link;
    assert_eq!(resume, Resume::Continues);
    let told = guest.checkpoint_after_ticks();
    assert!(told.codings.pages().0 * 4 < first.codings.pages().0, "{told:?} is no full copy like {first:?}");
    guest.assert_shadow_is(4);
    assert_eq!(guest.take_over(), told.checkpoint);
}

#[test]
fn a_stage_that_is_too_small_is_told_and_the_shadow_stays() {
    let limits = Limits { stage: PageCount(20), ..Limits::default() };
    let mut guest = Protected::start(limits);
    guest.checkpoint_after_ticks();
    guest.await_ticks();
    let sent = guest.primary.checkpoint().and_then(|told| guest.primary.await_sealed(told.checkpoint));
    let error = sent.expect_err("64 pages, and room for 20");
    assert!(matches!(error, ReplicateError::Refused { checkpoint: 2 }), "{error}");
    let refusal = guest.link.refusal.lock().unwrap().take();
    let limit = PageCount(20).bytes();
    assert!(matches!(refusal, Some(ShadowError::Stage(StageError::Full { limit: l })) if l == limit), "{refusal:?}");
    guest.qemu.kill().expect("killed");
    guest.assert_shadow_is(1);
    assert_eq!(guest.take_over(), 1);
}

/// Hears what the shadow answers.
#[derive(Default)]
struct Answers(Mutex<Vec<Message>>);

impl Wire for Answers {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        self.0.lock().unwrap().push(message);
        Ok(())
    }
}

fn pages(epoch: Epoch, checkpoint: u64, records: u32, body: Vec<u8>) -> Message {
    Message::Pages { stream: STREAM, epoch, checkpoint, records, packed: false, body }
}

fn device(checkpoint: u64, at: u64, bytes: &[u8]) -> Message {
    Message::Device { stream: STREAM, epoch: EPOCH, checkpoint, at, bytes: bytes.to_vec() }
}

fn seal(checkpoint: u64, records: u64, device: u32) -> Message {
    Message::Seal { stream: STREAM, epoch: EPOCH, checkpoint, records, device, marks: Vec::new() }
}

/// Says what is wrong with an error, or nothing.
type Fits = fn(&ShadowError) -> bool;

/// Each row is a session that goes wrong; after each the shadow has what it had.
#[test]
fn what_is_not_a_whole_checkpoint_is_refused() {
    let mut guest = Protected::start(Limits { device: Bytes(1 << 20), ..Limits::default() });
    guest.checkpoint_after_ticks();
    let newest = guest.checkpoint_after_ticks().checkpoint;
    // Page 17 all zero: the guest keeps a count there.
    let zero_17 = || vec![17 << 2];
    let table: Vec<(&str, Vec<Message>, Fits)> = vec![
        ("torn", vec![pages(EPOCH, 3, 1, zero_17()), seal(3, 2, 0)], |e| {
            matches!(e, ShadowError::Device { .. } | ShadowError::Stage(StageError::Torn { .. }))
        }),
        ("devices cut short", vec![device(3, 0, b"QEVM"), seal(3, 0, 4000)], |e| {
            matches!(e, ShadowError::DeviceCut { said: 4000, have: 4 })
        }),
        ("devices that are none", vec![pages(EPOCH, 3, 1, zero_17()), device(3, 0, b"QEVMx"), seal(3, 1, 5)], |e| {
            matches!(e, ShadowError::Device { checkpoint: 3, .. })
        }),
        ("devices with a gap", vec![device(3, 9, b"x")], |e| matches!(e, ShadowError::DeviceGap { at: 9, have: 0 })),
        ("devices without end", vec![device(3, 1 << 20, b"x")], |e| matches!(e, ShadowError::DeviceTooLarge { .. })),
        ("an older epoch", vec![pages(Epoch(1), 3, 1, zero_17())], |e| {
            matches!(e, ShadowError::OldEpoch { said: Epoch(1), here: EPOCH })
        }),
        ("a newer epoch that was not agreed", vec![pages(Epoch(3), 3, 1, zero_17())], |e| {
            matches!(e, ShadowError::OtherEpoch { .. })
        }),
        ("the same checkpoint again", vec![pages(EPOCH, 2, 1, zero_17())], |e| {
            matches!(e, ShadowError::OutOfTurn { said: 2, expected: 3 })
        }),
        ("an earlier one after a later", vec![pages(EPOCH, 4, 1, zero_17()), pages(EPOCH, 3, 1, zero_17())], |e| {
            matches!(e, ShadowError::OutOfTurn { said: 3, expected: 4 })
        }),
        ("no batch", vec![pages(EPOCH, 3, 1, vec![0xff; 30])], |e| matches!(e, ShadowError::Stage(_))),
        ("another message", vec![Message::Ping { seq: 1 }], |e| matches!(e, ShadowError::NotForUs { .. })),
    ];
    let mut shadow = guest.shadow.lock().unwrap();
    for (name, mut session, fits) in table {
        shadow.begin(EPOCH).expect("another session");
        let (answers, last) = (Answers::default(), session.pop().expect("a message"));
        session.into_iter().for_each(|message| shadow.take(message, &answers).expect(name));
        let error = shadow.take(last, &answers).expect_err(name);
        assert!(fits(&error), "{name}: {error}");
        let refused = answers.0.lock().unwrap().iter().all(|a| matches!(a, Message::Sealed { ok: false, .. }));
        assert!(refused, "{name}: {:?}", answers.0.lock().unwrap());
        assert_eq!(shadow.has(), Some((EPOCH, newest)), "{name}");
        let after = shadow.take(pages(EPOCH, 3, 1, zero_17()), &answers).expect_err("the session is over");
        assert!(matches!(after, ShadowError::NoSession), "{name}: {after}");
    }
    assert!(matches!(shadow.begin(Epoch(1)), Err(ShadowError::OldEpoch { .. })));
    drop(shadow);
    guest.assert_shadow_is(newest);
    guest.qemu.kill().expect("killed");
    assert_eq!(guest.take_over(), newest);
    let again = guest.shadow.lock().unwrap().begin(Epoch(3));
    assert!(matches!(again, Err(ShadowError::TakenOver)), "it runs here, and no one writes its memory");
}
