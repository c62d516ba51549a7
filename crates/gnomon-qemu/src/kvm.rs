//! Whether KVM really runs guests here: `/dev/kvm` being there proves nothing.
//!
//! A hypervisor may offer KVM to its guests by emulating every privileged instruction (nested PVM does). There a boot
//! sector runs, reaches long mode and gives every right answer; only a stock kernel is so slow that it never leaves
//! its decompressor. Measured on such a host: 2.3 µs for one round of a two-instruction loop in ring 0, four orders of
//! magnitude above the processor and two above QEMU's own emulator. What tells the two apart is therefore time, not
//! results: the probe enters long mode with paging and counts down 2^26 there. A processor needs 25 to 70 ms for
//! that, however old; at a microsecond a round it is over a minute. The time allowed, ten seconds, is far from both.

use std::{
    env,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::process::{Exited, ProcessError, Spawn, kill, last_words, spawn};

/// How long the probe may take by default. It needs about 0.3 s where KVM works, most of it for the firmware.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// What trying KVM has shown. The caller keeps it; it holds until the host is booted or QEMU is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvmProof {
    /// Stock guests may be run under KVM.
    pub usable: bool,
    /// What was tried and what happened, for the user.
    pub why: String,
    /// How long it took.
    pub took: Duration,
}

/// The processor model that guests get under KVM when they ask for none: everything this processor can do.
pub const KVM_CPU: &str = "host";

/// Tries KVM with a boot sector that works in long mode (see the module), on the processor model `cpu` that the guest
/// will have: some hosts run one model and make QEMU abort on another. Blocks for up to `timeout` where KVM is no
/// good, which is why the answer should be kept.
pub fn prove_kvm(qemu: &Path, cpu: &str, timeout: Duration) -> KvmProof {
    judged(|| {
        let dir = scratch()?;
        let disk = dir.path().join("probe.img");
        std::fs::write(&disk, probe_disk()).map_err(|e| ProcessError::file("write", &disk, e))?;
        let drive = format!("file={},format=raw,if=ide", disk.display().to_string().replace(',', ",,"));
        let devices = ["-drive", &drive, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"];
        let exited = run(qemu, cpu, &devices, &[], dir.path(), |exited| exited(timeout))?;
        Ok(match exited {
            Some(Exited::Code(PROBE_EXIT)) => Ok("a guest worked in long mode at the processor's own speed".into()),
            None => Err(format!(
                "a guest did not do 50 ms of work within {timeout:?}: /dev/kvm emulates instead of running it"
            )),
            Some(other) => Err(format!("QEMU {other}, it said: {}", last_words(&dir.path().join("log")))),
        })
    })
}

/// Tries KVM with a Linux kernel, the last word where one is at hand: it counts as usable once the kernel speaks on
/// its console. Blocks for up to `timeout`.
pub fn prove_with_kernel(
    qemu: &Path,
    cpu: &str,
    kernel: &Path,
    initrd: Option<&Path>,
    timeout: Duration,
) -> KvmProof {
    judged(|| {
        let dir = scratch()?;
        let (ours, theirs) = UnixStream::pair().map_err(|e| ProcessError::file("connect to", qemu, e))?;
        let theirs = OwnedFd::from(theirs);
        let (console, kernel) = (format!("socket,id=s,fd={}", theirs.as_raw_fd()), kernel.display().to_string());
        let initrd = initrd.map(|path| path.display().to_string());
        let mut devices = vec!["-chardev", &console, "-serial", "chardev:s", "-no-reboot", "-kernel", &kernel];
        devices.extend(["-append", "console=ttyS0 panic=-1"]);
        devices.extend(initrd.iter().flat_map(|path| ["-initrd", path.as_str()]));
        let inherit = [theirs.as_raw_fd()];
        let spoke = run(qemu, cpu, &devices, &inherit, dir.path(), move |_| {
            drop(theirs);
            speaks(ours, timeout)
        })?;
        Ok(match spoke {
            true => Ok(format!("{kernel} booted")),
            false => Err(format!(
                "{kernel} did not speak (it was given {timeout:?}); QEMU said: {}",
                last_words(&dir.path().join("log"))
            )),
        })
    })
}

/// Times a trial and turns whatever went wrong in it into a reason not to trust KVM.
fn judged(trial: impl FnOnce() -> Result<Result<String, String>, ProcessError>) -> KvmProof {
    let started = Instant::now();
    let (usable, why) = match trial() {
        Ok(Ok(why)) => (true, why),
        Ok(Err(why)) => (false, why),
        Err(error) => (false, error.to_string()),
    };
    KvmProof { usable, why, took: started.elapsed() }
}

fn scratch() -> Result<tempfile::TempDir, ProcessError> {
    tempfile::tempdir().map_err(|e| ProcessError::file("write to", &env::temp_dir(), e))
}

/// Runs a guest under KVM as [`crate::command_line`] would, lets `observe` look, and ends it.
fn run<T>(
    qemu: &Path,
    cpu: &str,
    devices: &[&str],
    inherit: &[i32],
    dir: &Path,
    observe: impl FnOnce(&dyn Fn(Duration) -> Option<Exited>) -> T,
) -> Result<T, ProcessError> {
    let words =
        ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-accel", "kvm", "-m", "256"];
    let args: Vec<String> = words.iter().chain(&["-cpu", cpu]).chain(devices).map(|w| w.to_string()).collect();
    let (pid, pidfd, watch) = spawn(&Spawn { program: qemu, args: &args, inherit, log: &dir.join("log") })?;
    let seen = observe(&|timeout| watch.wait(timeout));
    kill(&pidfd, &watch, pid)?;
    Ok(seen)
}

/// Whether a kernel's banner comes within the time.
fn speaks(mut console: UnixStream, timeout: Duration) -> bool {
    const BANNER: &[u8] = b"Linux version";
    let deadline = Instant::now() + timeout;
    let mut heard: Vec<u8> = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || console.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        match console.read(&mut chunk) {
            Ok(0) => return false,
            Ok(n) => heard.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
        if heard.windows(BANNER.len()).any(|w| w == BANNER) {
            return true;
        }
        // Enough to find a banner that was cut in two; a chatty guest must not fill our memory.
        heard.drain(..heard.len().saturating_sub(BANNER.len()));
    }
}

/// The exit code of QEMU when the probe writes 42 to isa-debug-exit: `42 << 1 | 1`.
const PROBE_EXIT: i32 = 85;

/// A disk that firmware takes for one: with less than a megabyte it finds no geometry.
fn probe_disk() -> Vec<u8> {
    let mut disk = vec![0u8; 1 << 20];
    disk[..PROBE.len()].copy_from_slice(&PROBE);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// The probe, loaded by the firmware at 0x7c00.
#[rustfmt::skip]
const PROBE: [u8; 137] = [
    0xfa,                                                 // cli
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0,                   // xor ax, ax; mov ds, ax; mov es, ax
    // Page tables at 0x1000, 0x2000, 0x3000: the first 2 MiB, mapped to themselves.
    0xbf, 0x00, 0x10, 0xb9, 0x00, 0x30, 0xf3, 0xaa,       // mov di, 0x1000; mov cx, 0x3000; rep stosb
    0x66, 0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, 0x00, 0x00, // mov dword [0x1000], 0x2003
    0x66, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0x00, 0x00, // mov dword [0x2000], 0x3003
    0x66, 0xc7, 0x06, 0x00, 0x30, 0x83, 0x00, 0x00, 0x00, // mov dword [0x3000], 0x0083
    // Into long mode: PAE, page tables, EFER.LME, then protection and paging at once.
    0x66, 0x0f, 0x01, 0x16, 0x83, 0x7c,                   // lgdt [gdtr]
    0x0f, 0x20, 0xe0, 0x0c, 0x20, 0x0f, 0x22, 0xe0,       // mov eax, cr4; or al, 0x20; mov cr4, eax
    0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, // mov eax, 0x1000; mov cr3, eax
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0,                   // mov ecx, 0xc0000080
    0x0f, 0x32, 0x80, 0xcc, 0x01, 0x0f, 0x30,             // rdmsr; or ah, 1; wrmsr
    0x0f, 0x20, 0xc0,                                     // mov eax, cr0
    0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, // or eax, 0x80000001; mov cr0, eax
    0xea, 0x5f, 0x7c, 0x08, 0x00,                         // jmp 8:long
    // long: 64-bit code from here on.
    0x31, 0xc0, 0x0f, 0xa2,                               // xor eax, eax; cpuid
    0xb9, 0x00, 0x00, 0x00, 0x04,                         // mov ecx, 1 << 26
    0xff, 0xc9, 0x75, 0xfc,                               // count: dec ecx; jnz count
    0xb0, 0x2a, 0xe6, 0xf4,                               // mov al, 42; out 0xf4, al
    0xf4, 0xeb, 0xfd,                                     // hlt; jmp back to it
    // gdt: nothing, 64-bit code.
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00,
    // gdtr: its size less one, where it is.
    0x0f, 0x00, 0x73, 0x7c, 0x00, 0x00,
];

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_banner_is_heard_wherever_it_is_cut() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let talk = std::thread::spawn(move || {
            for piece in [&[b'.'; 9000][..], b"[0.0] Linux ver", b"sion 6.1"] {
                theirs.write_all(piece).expect("a listener");
            }
        });
        assert!(speaks(ours, Duration::from_secs(60)));
        talk.join().expect("talked");
    }

    #[test]
    fn a_guest_that_ends_without_a_word_is_not_heard() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(b"Booting...").expect("a listener");
        drop(theirs);
        assert!(!speaks(ours, Duration::from_secs(60)));
    }

    #[test]
    fn the_probe_is_a_boot_sector() {
        let disk = probe_disk();
        assert!(PROBE.len() < 510 && disk[510..512] == [0x55, 0xaa]);
    }
}
