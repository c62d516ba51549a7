//! What a stream holds, and how two of them differ.

use std::fmt;

use serde::Serialize;

/// What is in a migration stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The versioned machine type; empty when the stream does not tell.
    pub machine: String,
    /// Capabilities that both sides must have on.
    pub capabilities: Vec<String>,
    /// RAM blocks, in the stream's order.
    pub ram: Vec<RamBlock>,
    /// Devices, in the stream's order.
    pub devices: Vec<DeviceSection>,
    /// Bytes of the whole stream.
    pub length: u64,
}

/// A block of RAM or ROM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RamBlock {
    /// Its name.
    pub id: String,
    /// In bytes.
    pub size: u64,
    /// Where it is in the guest's address space; told only when shared RAM is left out.
    pub address: Option<u64>,
    /// How many pages of it the stream carries; a page that was sent twice counts twice.
    pub pages: u64,
    /// It is not in the stream: whoever loads it must have the same memory.
    pub left_out: bool,
}

/// The state of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceSection {
    /// QEMU's name for it, with the place of a PCI device: `0000:00:03.0/virtio-blk`.
    pub name: String,
    /// Which of several of that name.
    pub instance: u32,
    /// Version of its format.
    pub version: u32,
    /// Bytes of its state.
    pub length: u64,
}

/// Something that two machines do not have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// The machine types.
    Machine {
        /// Of the first.
        this: String,
        /// Of the second.
        other: String,
    },
    /// A RAM block has different sizes; `None` where it is not.
    Ram {
        /// Its name.
        id: String,
        /// Bytes in the first.
        this: Option<u64>,
        /// Bytes in the second.
        other: Option<u64>,
    },
    /// A device's format has different versions; `None` where the device is not.
    Device {
        /// Its name.
        name: String,
        /// Which of several.
        instance: u32,
        /// Version in the first.
        this: Option<u32>,
        /// Version in the second.
        other: Option<u32>,
    },
}

impl Inventory {
    /// Whether RAM that both sides map is left out.
    pub fn leaves_out_shared_ram(&self) -> bool {
        self.capabilities.iter().any(|name| name == "x-ignore-shared")
    }

    /// What another machine has otherwise: type, RAM blocks, devices and their versions. Not what is in them, nor how
    /// long it is, which changes from one moment to the next.
    pub fn differences(&self, other: &Inventory) -> Vec<Difference> {
        let mut all = Vec::new();
        if self.machine != other.machine {
            all.push(Difference::Machine { this: self.machine.clone(), other: other.machine.clone() });
        }
        let size = |of: &Inventory, id: &str| of.ram.iter().find(|block| block.id == id).map(|block| block.size);
        for id in union(self.ram.iter().map(|b| &b.id), other.ram.iter().map(|b| &b.id)) {
            let (this, other) = (size(self, id), size(other, id));
            if this != other {
                all.push(Difference::Ram { id: id.clone(), this, other });
            }
        }
        for key in union(self.devices.iter().map(key), other.devices.iter().map(key)) {
            let version = |of: &Inventory| of.devices.iter().find(|d| self::key(d) == key).map(|d| d.version);
            let (this, other) = (version(self), version(other));
            if this != other {
                all.push(Difference::Device { name: key.0.to_string(), instance: key.1, this, other });
            }
        }
        all
    }
}

fn key(device: &DeviceSection) -> (&str, u32) {
    (&device.name, device.instance)
}

/// What is in the first, then what is only in the second.
fn union<T: PartialEq>(first: impl Iterator<Item = T>, second: impl Iterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = first.collect();
    let shared = all.len();
    for item in second {
        if !all[..shared].contains(&item) {
            all.push(item);
        }
    }
    all
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |value: Option<u64>| value.map_or("none".to_string(), |value| value.to_string());
        match self {
            Difference::Machine { this, other } => write!(f, "machine type: {this} and {other}"),
            Difference::Ram { id, this, other } => {
                write!(f, "RAM block '{id}' (bytes): {} and {}", or_none(*this), or_none(*other))
            }
            Difference::Device { name, instance, this, other } => {
                let (this, other) = (or_none(this.map(u64::from)), or_none(other.map(u64::from)));
                write!(f, "device '{name}' instance {instance} (version): {this} and {other}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Inventory {
        let device = |name: &str, version| DeviceSection { name: name.into(), instance: 0, version, length: 9 };
        let block = |id: &str, size| RamBlock { id: id.into(), size, address: None, pages: 0, left_out: false };
        Inventory {
            machine: "pc-q35-7.2".into(),
            ram: vec![block("ram0", 1 << 20), block("pc.bios", 1 << 18)],
            devices: vec![device("timer", 2), device("cpu", 12)],
            ..Inventory::default()
        }
    }

    #[test]
    fn a_machine_does_not_differ_from_itself_at_another_moment() {
        let mut later = machine();
        later.devices[0].length = 10;
        later.ram[0].pages = 7;
        assert_eq!(machine().differences(&later), []);
    }

    #[test]
    fn each_difference_is_told() {
        type Change = fn(&mut Inventory);
        let table: [(Change, &str); 6] = [
            (|m| m.machine = "pc-q35-7.1".into(), "machine type: pc-q35-7.2 and pc-q35-7.1"),
            (|m| m.ram[0].size = 1 << 21, "RAM block 'ram0' (bytes): 1048576 and 2097152"),
            (|m| drop(m.ram.pop()), "RAM block 'pc.bios' (bytes): 262144 and none"),
            (|m| m.devices[1].version = 13, "device 'cpu' instance 0 (version): 12 and 13"),
            (|m| drop(m.devices.remove(0)), "device 'timer' instance 0 (version): 2 and none"),
            (
                |m| m.devices.push(DeviceSection { instance: 1, ..m.devices[1].clone() }),
                "device 'cpu' instance 1 (version): none and 12",
            ),
        ];
        for (change, words) in table {
            let mut other = machine();
            change(&mut other);
            let told: Vec<String> = machine().differences(&other).iter().map(ToString::to_string).collect();
            assert_eq!(told, [words]);
        }
    }
}
