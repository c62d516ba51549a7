//! What a guest sees of its processor, and where another QEMU would show it something else.
//!
//! A guest asks its processor once, when it boots, and believes the answer for the rest of its life. QEMU loads the
//! state of one model into another without a word; the guest then uses instructions that are gone, or misses its own
//! name. So the answers are compared before: of the processor that a guest has, and of the one it would get.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::qmp::{Qmp, QmpError};

/// Properties that are read, at most: QEMU 10.0 has some 510.
const MOST: usize = 4096;

/// What the type is called says nothing to the guest: a model has several names.
const NAME_ONLY: &str = "type";

/// Which memory is near follows from how the guest's memory is described (room for more makes one node of all), which a
/// QEMU that is only asked about processors does not know; it is no part of the processor.
const NODE: &str = "node-id";

/// The answers that QEMU itself forms from the others, one register at a time.
const REGISTERS: &str = "feature-words";

/// A processor as QEMU has made it: every property that is a number, a word or a switch, and the registers of `CPUID`
/// with features in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    properties: BTreeMap<String, String>,
    registers: BTreeMap<Register, u64>,
}

/// Where `CPUID` tells of features: the leaf, its part where it has several, and the register.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Register {
    eax: u64,
    ecx: Option<u64>,
    name: String,
}

/// Something that a guest would see change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessorDifference {
    /// What: a property in QEMU's words, or a register of `CPUID`.
    pub what: String,
    /// What the guest has.
    pub this: String,
    /// What it would get.
    pub other: String,
}

impl Processor {
    /// Asks a QEMU about the first processor of its guest, which may run. Some 450 short questions: 0.1 s.
    pub fn of(qmp: &Qmp) -> Result<Processor, QmpError> {
        let at = qmp.first_processor()?;
        let mut processor = Processor::default();
        for (name, kind) in qmp.qom_properties(&at)?.into_iter().take(MOST) {
            match kind.as_str() {
                "bool" | "string" | "str" => {}
                number if number.trim_start_matches('u').starts_with("int") => {}
                _ if name == REGISTERS => {}
                _ => continue,
            }
            // One that cannot be read at this moment is none of the guest's.
            if let Some(value) = optional(qmp.qom_get(&at, &name))? {
                processor.note(name, &value);
            }
        }
        Ok(processor)
    }

    /// Takes one answer down.
    fn note(&mut self, name: String, value: &Value) {
        match value {
            _ if name == NODE => {}
            Value::Array(words) if name == REGISTERS => self.registers.extend(words.iter().filter_map(register)),
            Value::String(word) if name != NAME_ONLY => drop(self.properties.insert(name, word.clone())),
            Value::Bool(_) | Value::Number(_) => drop(self.properties.insert(name, value.to_string())),
            _ => {}
        }
    }

    /// What a guest of this processor would see change on the other. A property that only one of the two QEMUs knows
    /// is left out (a newer one has dozens more): what it does to features is in the registers.
    pub fn differences(&self, other: &Processor) -> Vec<ProcessorDifference> {
        let mut all = Vec::new();
        for (name, this) in &self.properties {
            if let Some(other) = other.properties.get(name).filter(|other| *other != this) {
                all.push(ProcessorDifference { what: name.clone(), this: this.clone(), other: other.clone() });
            }
        }
        // A leaf that one of them does not know has no features there.
        let at = |of: &Processor, register| of.registers.get(register).copied().unwrap_or(0);
        let more = other.registers.keys().filter(|register| !self.registers.contains_key(register));
        for register in self.registers.keys().chain(more) {
            let (this, other) = (at(self, register), at(other, register));
            if this != other {
                let hex = |value| format!("{value:#010x}");
                all.push(ProcessorDifference { what: register.to_string(), this: hex(this), other: hex(other) });
            }
        }
        all
    }
}

fn register(word: &Value) -> Option<(Register, u64)> {
    let eax = word.get("cpuid-input-eax")?.as_u64()?;
    let ecx = word.get("cpuid-input-ecx").and_then(Value::as_u64);
    let name = word.get("cpuid-register")?.as_str()?.chars().take(4).collect();
    Some((Register { eax, ecx, name }, word.get("features")?.as_u64()?))
}

/// QEMU's refusal of one question is no failure of the conversation.
fn optional(answer: Result<Value, QmpError>) -> Result<Option<Value>, QmpError> {
    match answer {
        Err(QmpError::Refused { .. }) => Ok(None),
        other => other.map(Some),
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = self.ecx.map(|ecx| format!(".{ecx}")).unwrap_or_default();
        write!(f, "CPUID {:#x}{part} {}", self.eax, self.name)
    }
}

impl fmt::Display for ProcessorDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} and {}", self.what, self.this, self.other)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn processor(answers: &[(&str, Value)]) -> Processor {
        let mut processor = Processor::default();
        answers.iter().for_each(|(name, value)| processor.note(name.to_string(), value));
        processor
    }

    fn words(features: u64, more: &[Value]) -> Value {
        let word = json!({ "cpuid-register": "EDX", "cpuid-input-eax": 1, "features": features });
        Value::Array([vec![word], more.to_vec()].concat())
    }

    #[test]
    fn a_guest_sees_what_is_told_and_nothing_else() {
        let registers = words(3, &[]);
        let own = processor(&[
            ("type", json!("a-cpu")),
            ("model", json!(6)),
            ("node-id", json!(0)),
            (REGISTERS, registers),
        ]);
        let leaf = |features| json!({ "cpuid-register": "EAX", "cpuid-input-eax": 36, "cpuid-input-ecx": 0, "features": features });
        let table = [
            // Another name, a property and a leaf that only the newer one knows and that say nothing.
            (json!("b-cpu"), json!(6), words(3, &[leaf(0)]), vec![]),
            (json!("a-cpu"), json!(15), words(3, &[]), vec!["model: 6 and 15"]),
            (json!("a-cpu"), json!(6), words(1, &[]), vec!["CPUID 0x1 EDX: 0x00000003 and 0x00000001"]),
            (json!("a-cpu"), json!(6), words(3, &[leaf(8)]), vec!["CPUID 0x24.0 EAX: 0x00000000 and 0x00000008"]),
        ];
        for (kind, model, registers, told) in table {
            let other = [
                ("type", kind),
                ("model", model),
                (REGISTERS, registers),
                ("sha512", json!(false)),
                ("node-id", json!(-1)),
            ];
            let told_of: Vec<String> = own.differences(&processor(&other)).iter().map(ToString::to_string).collect();
            assert_eq!(told_of, told);
        }
    }

    #[test]
    fn what_is_no_register_is_left_out() {
        for odd in [json!([7, null, {}]), json!([{ "cpuid-register": 1 }]), json!({}), json!(null)] {
            assert_eq!(processor(&[(REGISTERS, odd)]), Processor::default());
        }
    }
}
