//! The stream's parser against what real QEMUs write.

use std::{io::Read, os::unix::net::UnixStream};

use gnomon_qemu::{
    CaptureOptions, Difference, Inventory, NetSpec, Outgoing, OutgoingOptions, QemuBinary, RAM_ID, Role, VmSpec,
    capture, read_stream,
};

use crate::guests::{LONG, Stable, newer_qemu, qemu};

fn inventory(stable: &Stable, qemu: &QemuBinary, name: &str, spec: &VmSpec) -> Inventory {
    let vm = stable.launch_by(qemu, name, spec, Role::Boot, None).expect("started");
    let frozen = capture(&vm, &CaptureOptions::default()).expect("captured");
    let inventory = frozen.blob().inspect().expect("read");
    vm.kill().expect("killed");
    inventory
}

fn on(machine: &str, stable: &Stable) -> VmSpec {
    VmSpec { machine: machine.into(), ..stable.ticker() }
}

#[test]
fn every_device_of_old_and_new_qemus_is_found() {
    let stable = Stable::new();
    for (who, qemu) in [("old", qemu()), ("new", newer_qemu())] {
        for machine in ["pc-i440fx-7.2", "pc-q35-7.2"] {
            let spec = VmSpec { net: NetSpec::User { mac: None, forward: Vec::new() }, ..on(machine, &stable) };
            let found = inventory(&stable, qemu, &format!("{who}-{machine}"), &spec);
            assert_eq!(found.machine, machine);
            let ram = found.ram.iter().find(|block| block.id == RAM_ID).expect("its RAM");
            assert!(ram.left_out && ram.size >= spec.memory, "{ram:?}");
            assert!(found.ram.iter().any(|block| !block.left_out && block.pages > 0), "ROMs come along");
            for device in ["timer", "cpu", "serial", "virtio-blk", "virtio-net", "globalstate"] {
                let there = found.devices.iter().any(|d| d.name.ends_with(device) && d.length > 0);
                assert!(there, "{who} {machine}: {device} is not in {:?}", found.devices);
            }
        }
    }
}

#[test]
fn a_change_of_the_configuration_is_seen_in_the_devices() {
    let stable = Stable::new();
    let spec = on("pc-q35-7.2", &stable);
    let plain = inventory(&stable, qemu(), "plain", &spec);
    let with_card = VmSpec { net: NetSpec::User { mac: None, forward: Vec::new() }, ..spec.clone() };
    let carded = inventory(&stable, qemu(), "card", &with_card);
    let more: Vec<String> = plain.differences(&carded).iter().map(ToString::to_string).collect();
    assert!(more.iter().any(|text| text.contains("virtio-net")), "{more:?}");
    let newer = inventory(&stable, newer_qemu(), "newer", &spec);
    let upgrade = plain.differences(&newer);
    assert!(upgrade.iter().all(|d| matches!(d, Difference::Ram { .. })), "an upgrade keeps the devices: {upgrade:?}");
}

/// A whole native migration, RAM and all, as it is read from an adopted VM.
#[test]
fn a_stream_with_ram_is_read_as_it_comes() {
    let stable = Stable::new();
    for (name, qemu) in [("old", qemu()), ("new", newer_qemu())] {
        let vm = stable.launch_by(qemu, name, &on("pc-q35-7.2", &stable), Role::Boot, None).expect("started");
        let (theirs, mut ours) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(LONG)).expect("a timeout");
        let reader = std::thread::spawn(move || read_stream(Counted(&mut ours, 0)));
        let mut outgoing = Outgoing::start(vm.qmp(), theirs.into(), &OutgoingOptions::default()).expect("starts");
        assert!(outgoing.await_standing(LONG).expect("no failure"));
        outgoing.switch(LONG).expect("switched");
        let found = reader.join().expect("read").expect("a whole stream");
        let ram = found.ram.iter().find(|block| block.id == RAM_ID).expect("its RAM");
        assert!(!ram.left_out && ram.pages >= ram.size / 4096, "{ram:?}");
        assert!(found.devices.iter().any(|device| device.name == "cpu"));
    }
}

/// Gives odd pieces, as a link would.
struct Counted<'a>(&'a mut UnixStream, usize);

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.1 += 1;
        let most = (self.1 % 7 * 1000 + 1).min(into.len());
        self.0.read(&mut into[..most])
    }
}

/// SplitMix64: the same seed, the same damage.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

/// Changes, cuts and repeats. Half of the damage goes to the beginning and the end, where the structure is.
fn damaged(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(4) {
        let within = [bytes.len(), 300, bytes.len()][random.below(3)].min(bytes.len());
        let at = match random.below(2) {
            0 => random.below(within),
            _ => bytes.len() - 1 - random.below(within.min(2000)),
        };
        match random.below(8) {
            0 => bytes.truncate(at.max(1)),
            1 => {
                let piece = bytes[at..(at + random.below(500)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes[at] = [0, 1, 4, 6, 0x7e, 0x7f, 0xff, random.below(256) as u8][random.below(8)],
        }
    }
    bytes
}

/// Real streams, damaged by seed: each is read or refused. `GNOMON_FUZZ_ITERATIONS` asks for more.
#[test]
fn damaged_streams_of_real_qemus_are_read_or_refused() {
    let rounds = std::env::var("GNOMON_FUZZ_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let stable = Stable::new();
    let spec = on("pc-q35-7.2", &stable);
    for (name, qemu) in [("old", qemu()), ("new", newer_qemu())] {
        let vm = stable.launch_by(qemu, name, &spec, Role::Boot, None).expect("started");
        let frozen = capture(&vm, &CaptureOptions::default()).expect("captured");
        let good = frozen.blob().bytes().expect("read");
        let mut refused = 0;
        for seed in 0..rounds {
            let bytes = damaged(&good, &mut Random(seed));
            match read_stream(&bytes[..]) {
                Ok(found) => assert_eq!(found.length, bytes.len() as u64, "seed {seed}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 0, "{rounds} rounds did no damage");
    }
}
