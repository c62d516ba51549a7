//! The journal on a medium that dies at any byte, and on one that is damaged.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::blockmap::BootId;

const SIZE: Bytes = Bytes(4 << 20);
const LINE: Lineage = Lineage(7);

/// Bytes that outlive the journal, and take only so many more before they take none.
#[derive(Clone)]
struct Mortal {
    bytes: Arc<Mutex<Vec<u8>>>,
    left: Arc<Mutex<u64>>,
}

impl Mortal {
    fn new(len: u64) -> Mortal {
        Mortal { bytes: Arc::new(Mutex::new(vec![0; len as usize])), left: Arc::new(Mutex::new(u64::MAX)) }
    }

    fn open(&self) -> Result<Journal, JournalError> {
        Journal::open(Box::new(self.clone()), SIZE)
    }

    /// A journal of a volume that is sealed at turn 1.
    fn sealed(len: u64) -> (Mortal, Journal) {
        let mortal = Mortal::new(len);
        let mut journal = mortal.open().expect("a new one");
        journal.restart(LINE, Epoch(1), Stand::Sealed(1)).expect("begun");
        (mortal, journal)
    }

    fn dies_after(&self, bytes: u64) {
        *self.left.lock().unwrap() = bytes;
    }

    fn copy(&self) -> Mortal {
        let bytes = self.bytes.lock().unwrap().clone();
        Mortal { bytes: Arc::new(Mutex::new(bytes)), left: Arc::new(Mutex::new(u64::MAX)) }
    }
}

impl Medium for Mortal {
    fn len(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        into.copy_from_slice(&self.bytes.lock().unwrap()[at as usize..][..into.len()]);
        Ok(())
    }

    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        let mut left = self.left.lock().unwrap();
        let here = data.len().min(*left as usize);
        self.bytes.lock().unwrap()[at as usize..][..here].copy_from_slice(&data[..here]);
        *left -= here as u64;
        if here < data.len() { Err(io::Error::other("killed")) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        if *self.left.lock().unwrap() == 0 { Err(io::Error::other("killed")) } else { Ok(()) }
    }
}

fn data(at: u64, len: u32) -> (Say, Vec<u8>) {
    (Say::Data { at, len }, (0..len).map(|byte| (at + u64::from(byte)) as u8).collect())
}

fn says(found: &[Found]) -> Vec<Say> {
    found.iter().map(|record| record.say).collect()
}

/// Appends a turn of two writes and seals it, for as long as the medium lives.
fn sealed_turn(journal: &mut Journal, turn: u64) -> Result<(), JournalError> {
    let (say, body) = data(turn * 10, 3000);
    journal.append(say, &body)?;
    journal.append(Say::Zero { at: turn, len: 9 }, &[])?;
    journal.append(Say::Turn { turn, whole: true }, &[])?;
    seal(journal, turn).map(drop)
}

fn seal(journal: &mut Journal, turn: u64) -> Result<u64, JournalError> {
    let end = journal.append(Say::Seal { turn }, &[])?.end;
    journal.seal()?;
    Ok(end)
}

#[test]
fn what_was_appended_is_read_after_a_restart() {
    let (mortal, mut journal) = Mortal::sealed(LEAST);
    sealed_turn(&mut journal, 2).unwrap();
    let mut again = mortal.open().expect("opened");
    let found = again.read().expect("read");
    let expected = [data(20, 3000).0, Say::Zero { at: 2, len: 9 }, Say::Turn { turn: 2, whole: true }];
    assert_eq!(says(&found), [&expected[..], &[Say::Seal { turn: 2 }]].concat());
    assert_eq!(again.body(found[0].body, 3000).unwrap(), data(20, 3000).1);
    assert_eq!((again.slot().stand, again.slot().lineage), (Stand::Sealed(1), LINE));
}

#[test]
fn a_journal_that_dies_at_any_byte_keeps_what_was_sealed() {
    let (before, mut journal) = Mortal::sealed(LEAST);
    sealed_turn(&mut journal, 2).unwrap();
    let mut seen = [0; 2];
    // Records, the seal, the slot.
    for bytes in 0..3000 + 4 * HEAD as u64 + SLOT as u64 + 2 {
        let mortal = before.copy();
        let mut journal = mortal.open().unwrap();
        journal.read().unwrap();
        mortal.dies_after(bytes);
        let told = sealed_turn(&mut journal, 3).is_ok();
        mortal.dies_after(u64::MAX);
        let found = says(&mortal.open().expect("opened").read().expect("a torn end is no damage"));
        assert!(found.contains(&Say::Seal { turn: 2 }), "{bytes}");
        let is_sealed = found.contains(&Say::Seal { turn: 3 });
        assert!(is_sealed || !told, "{bytes}: what was said to be sealed is gone");
        assert!(!is_sealed || found.contains(&data(30, 3000).0), "{bytes}: a seal without its writes");
        seen[usize::from(is_sealed)] += 1;
    }
    assert!(seen[0] > 3000 && seen[1] > 100, "{seen:?}");
}

#[test]
fn a_journal_that_dies_while_it_is_made_or_begun_anew_is_as_before_or_after() {
    for bytes in 0..SLOT as u64 + 2 {
        let mortal = Mortal::new(LEAST);
        mortal.dies_after(bytes);
        let _ = mortal.open();
        mortal.dies_after(u64::MAX);
        assert_eq!(mortal.open().expect("made").slot().stand, Stand::Nothing, "{bytes}");
    }
    let (before, mut journal) = Mortal::sealed(LEAST);
    sealed_turn(&mut journal, 2).unwrap();
    let mut seen = [0; 2];
    for bytes in 0..2 * SLOT as u64 + 2 {
        let mortal = before.copy();
        let mut journal = mortal.open().unwrap();
        journal.read().unwrap();
        mortal.dies_after(bytes);
        let filling = Stand::Filling(BootId([1; 16]));
        let told = journal.restart(LINE, Epoch(2), filling).is_ok();
        mortal.dies_after(u64::MAX);
        let mut again = mortal.open().expect("opened");
        let is_anew = again.slot().stand == filling;
        let found = again.read().expect("read");
        assert_eq!(found.is_empty(), is_anew, "{bytes}");
        assert!(is_anew || !told, "{bytes}");
        seen[usize::from(is_anew)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

#[test]
fn once_both_slots_say_so_an_older_state_is_never_believed() {
    let (mortal, mut journal) = Mortal::sealed(LEAST);
    journal.restart(LINE, Epoch(2), Stand::Filling(BootId([1; 16]))).unwrap();
    for place in SLOTS {
        let damaged = mortal.copy();
        damaged.bytes.lock().unwrap()[place as usize + 60] ^= 1;
        let stand = damaged.open().expect("the other slot is whole").slot().stand;
        assert_eq!(stand, Stand::Filling(BootId([1; 16])));
    }
}

#[test]
fn a_full_log_can_still_be_sealed() {
    let (_mortal, mut journal) = Mortal::sealed(LEAST);
    let (say, body) = data(0, 100_000);
    let full = (0..).find_map(|_| journal.append(say, &body).err()).expect("it has an end");
    assert!(matches!(full, JournalError::Full { .. }), "{full}");
    journal.append(Say::Turn { turn: 2, whole: true }, &[]).expect("room for the end of a turn");
    let end = seal(&mut journal, 2).expect("and for its seal");
    journal.advance(end, Stand::Sealed(2)).unwrap();
    journal.append(say, &body).expect("room again");
}

#[test]
fn what_is_no_journal_of_the_volume_is_refused() {
    let (mortal, _journal) = Mortal::sealed(LEAST);
    let other = Journal::open(Box::new(mortal.clone()), Bytes(8 << 20)).err().expect("another size");
    let short = Mortal::new(LEAST - 1).open().err().expect("too short");
    mortal.bytes.lock().unwrap()[..8192].fill(0xAA);
    let noise = mortal.open().err().expect("no slot");
    for error in [other, short, noise] {
        assert!(matches!(error, JournalError::Foreign { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Round and round the log: what is read is what was appended since its beginning.
    #[test]
    fn a_log_that_goes_round_is_read_from_its_beginning(
        turns in prop::collection::vec((prop::collection::vec(1u32..400_000, 0..4), any::<bool>()), 1..40),
    ) {
        let (mortal, mut journal) = Mortal::sealed(LEAST + 12_345);
        let mut said: Vec<(Say, Vec<u8>)> = Vec::new();
        for (number, (writes, advances)) in turns.into_iter().enumerate() {
            let turn = number as u64 + 2;
            for (at, len) in writes.into_iter().enumerate() {
                let (say, body) = data(turn * 100 + at as u64, len);
                match journal.append(say, &body) {
                    Ok(_) => said.push((say, body)),
                    Err(JournalError::Full { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            // Once the slack is used up, only the beginning of the log can be given up.
            if seal(&mut journal, turn).is_ok() {
                said.push((Say::Seal { turn }, Vec::new()));
            }
            if advances {
                journal.advance(journal.head, Stand::Sealed(turn)).unwrap();
                said.clear();
            }
            let mut again = mortal.open().unwrap();
            let found = again.read().unwrap();
            prop_assert_eq!(found.len(), said.len());
            for (found, (say, body)) in found.iter().zip(&said) {
                prop_assert_eq!(found.say, *say);
                prop_assert!(again.body(found.body, body.len()).unwrap() == *body);
            }
        }
    }

    /// A changed byte is never read as something else: reading ends before it, and says so if that was sealed.
    #[test]
    fn damage_is_found(at in 0u64..9_500, value in 1u8..) {
        let (mortal, mut journal) = Mortal::sealed(LEAST);
        for turn in 2..5 {
            sealed_turn(&mut journal, turn).unwrap();
        }
        let all = says(&mortal.open().unwrap().read().unwrap());
        mortal.bytes.lock().unwrap()[(LOG_AT + at) as usize] ^= value;
        match mortal.open().unwrap().read() {
            Ok(found) => prop_assert!(at >= journal.head && says(&found) == all),
            Err(error) => prop_assert!(matches!(error, JournalError::Corrupt { .. }), "{}", error),
        }
    }

    /// A log of anything is read as nothing, in bounded memory.
    #[test]
    fn any_bytes_are_no_log(noise in prop::collection::vec(any::<u8>(), 1..4096)) {
        let (mortal, journal) = Mortal::sealed(LEAST);
        drop(journal);
        let mut bytes = mortal.bytes.lock().unwrap();
        for (place, byte) in bytes[LOG_AT as usize..].iter_mut().zip(noise.iter().cycle()) {
            *place = *byte;
        }
        drop(bytes);
        prop_assert_eq!(mortal.open().unwrap().read().unwrap(), []);
    }
}
