//! What a guest says about a DIMM, read from QEMU's events: pure.

use std::fmt;

use crate::qmp::QmpEvent;

/// One DIMM of which something was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DimmEvent {
    /// Its name.
    pub id: String,
    /// What was heard.
    pub answer: DimmAnswer,
}

/// What a guest says about a DIMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DimmAnswer {
    /// It has taken it.
    Taken,
    /// It does not take it, with ACPI's status.
    Declined(u64),
    /// It is about to give it back.
    LettingGo,
    /// It does not give it back, with ACPI's status.
    Kept(u64),
    /// It wanted to give it back, and QEMU could not take it, in QEMU's words.
    Stuck(String),
    /// It has given it back, and QEMU has removed the device.
    Gone,
}

impl DimmEvent {
    /// What an event of QEMU's says about a DIMM; `None` when it says nothing of the kind. `ACPI_DEVICE_OST` tells what
    /// the guest answered to which notice, `DEVICE_DELETED` that the device is gone; it is told of every device.
    pub fn of(event: &QmpEvent) -> Option<DimmEvent> {
        let data = &event.data;
        let (id, answer) = match event.name.as_str() {
            "ACPI_DEVICE_OST" => {
                let info = &data["info"];
                if info["slot-type"] != "DIMM" {
                    return None;
                }
                (&info["device"], answered(info["source"].as_u64()?, info["status"].as_u64()?)?)
            }
            "DEVICE_DELETED" => (&data["device"], DimmAnswer::Gone),
            "MEM_UNPLUG_ERROR" => {
                let words = data["msg"].as_str().unwrap_or_default();
                (&data["device"], DimmAnswer::Stuck(words.chars().take(WORDS).collect()))
            }
            "DEVICE_UNPLUG_GUEST_ERROR" => (&data["device"], DimmAnswer::Stuck(String::new())),
            _ => return None,
        };
        Some(DimmEvent { id: id.as_str()?.to_string(), answer })
    }
}

/// As many characters of QEMU's words are kept.
const WORDS: usize = 200;

/// What `_OST` was called for, and how it went. The notices of insertion are a check of the bus or of the device, and the
/// system's own start of it; those of ejection a request and the system's own.
///
/// Source: ACPI 6.5, tables 6.56 to 6.58.
fn answered(source: u64, status: u64) -> Option<DimmAnswer> {
    const IN_PROGRESS_INSERTING: u64 = 0x80;
    const IN_PROGRESS_EJECTING: u64 = 0x84;
    match (source, status) {
        (0 | 1 | 0x200, 0) => Some(DimmAnswer::Taken),
        (0 | 1 | 0x200, IN_PROGRESS_INSERTING) => None,
        (0 | 1 | 0x200, status) => Some(DimmAnswer::Declined(status)),
        (3 | 0x103, 0 | IN_PROGRESS_EJECTING) => Some(DimmAnswer::LettingGo),
        (3 | 0x103, status) => Some(DimmAnswer::Kept(status)),
        _ => None,
    }
}

impl fmt::Display for DimmAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let busy = "it is in use";
        match self {
            DimmAnswer::Taken => f.write_str("it has taken it"),
            DimmAnswer::Declined(status) => write!(f, "it says no (ACPI status {status:#x})"),
            DimmAnswer::LettingGo => f.write_str("it lets go"),
            DimmAnswer::Kept(status @ 0x81..=0x83) => write!(f, "{busy} (ACPI status {status:#x})"),
            DimmAnswer::Kept(status) => write!(f, "it says no (ACPI status {status:#x})"),
            DimmAnswer::Stuck(words) if words.is_empty() => f.write_str("QEMU could not take it"),
            DimmAnswer::Stuck(words) => write!(f, "QEMU could not take it: {words}"),
            DimmAnswer::Gone => f.write_str("it is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(name: &str, data: Value) -> Option<(String, DimmAnswer)> {
        let event = QmpEvent { data, ..QmpEvent::new(name) };
        DimmEvent::of(&event).map(|read| (read.id, read.answer))
    }

    fn ost(source: u64, status: u64) -> Option<DimmAnswer> {
        let info = json!({ "device": "d1", "slot": "0", "slot-type": "DIMM", "source": source, "status": status });
        read("ACPI_DEVICE_OST", json!({ "info": info })).map(|(_, answer)| answer)
    }

    #[test]
    fn a_guests_answers_are_told_apart() {
        let table = [
            (1, 0, Some(DimmAnswer::Taken)),
            (1, 1, Some(DimmAnswer::Declined(1))),
            (0x200, 0x81, Some(DimmAnswer::Declined(0x81))),
            (1, 0x80, None),
            (3, 0x84, Some(DimmAnswer::LettingGo)),
            (3, 0, Some(DimmAnswer::LettingGo)),
            (3, 0x82, Some(DimmAnswer::Kept(0x82))),
            (0x103, 1, Some(DimmAnswer::Kept(1))),
            (77, 0, None),
        ];
        for (source, status, answer) in table {
            assert_eq!(ost(source, status), answer, "{source:#x} {status:#x}");
        }
    }

    #[test]
    fn other_events_say_nothing_of_a_dimm() {
        let gone = ("d1".to_string(), DimmAnswer::Gone);
        let path = "/machine/peripheral/d1";
        assert_eq!(read("DEVICE_DELETED", json!({ "device": "d1", "path": path })), Some(gone));
        assert_eq!(read("DEVICE_DELETED", json!({ "path": path })), None);
        assert_eq!(read("STOP", json!({})), None);
        let cpu = json!({ "info": { "device": "c", "slot-type": "CPU", "source": 1, "status": 0 } });
        assert_eq!(read("ACPI_DEVICE_OST", cpu), None);
        let stuck = read("MEM_UNPLUG_ERROR", json!({ "device": "d1", "msg": "x".repeat(5000) }));
        assert_eq!(stuck, Some(("d1".to_string(), DimmAnswer::Stuck("x".repeat(WORDS)))));
    }

    proptest! {
        #[test]
        fn nothing_a_guest_says_is_more_than_an_answer(source: u64, status: u64) {
            prop_assert!(ost(source, status) != Some(DimmAnswer::Gone));
        }
    }
}
