//! Guests and QEMUs for the tests.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use gnomon_qemu::{
    Accel, DiskSpec, Launch, ProcessError, Qemu, QemuBinary, RamLoan, Resolved, Role, StopDeadlines, VmPaths, VmSpec,
    find_qemu, resolve,
};
use tempfile::TempDir;

/// Longer than anything here takes on the slowest machine: reaching it is a failure, never a measure.
pub const LONG: Duration = Duration::from_secs(60);

/// A boot sector that counts. Each tick it checks that the first word of each of 64 pages holds the count, raises
/// all of them by one, and prints the new count to the first serial port as eight hexadecimal digits and a line end.
/// A page that is wrong makes it print `!` and halt.
#[rustfmt::skip]
const TICKER: [u8; 135] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0,             // cli; xor ax, ax; mov ds, ax; mov ss, ax
    0xbc, 0x00, 0x70, 0x66, 0x31, 0xed,                   // mov sp, 0x7000; xor ebp, ebp
    0xbb, 0x00, 0x10, 0xb9, 0x40, 0x00,                   // mov bx, 0x1000; mov cx, 64
    0x8e, 0xc3,                                           // clear: mov es, bx
    0x26, 0x66, 0xc7, 0x06, 0, 0, 0, 0, 0, 0,             // mov dword [es:0], 0
    0x81, 0xc3, 0x00, 0x01, 0xe2, 0xee,                   // add bx, 0x100; loop clear
    0xbb, 0x00, 0x10, 0xb9, 0x40, 0x00,                   // tick: mov bx, 0x1000; mov cx, 64
    0x8e, 0xc3,                                           // page: mov es, bx
    0x26, 0x66, 0x39, 0x2e, 0x00, 0x00, 0x75, 0x39,       // cmp [es:0], ebp; jne bad
    0x26, 0x66, 0xff, 0x06, 0x00, 0x00,                   // inc dword [es:0]
    0x81, 0xc3, 0x00, 0x01, 0xe2, 0xea,                   // add bx, 0x100; loop page
    0x66, 0x45, 0x66, 0x89, 0xee, 0xb9, 0x08, 0x00,       // inc ebp; mov esi, ebp; mov cx, 8
    0x66, 0xc1, 0xc6, 0x04, 0x89, 0xf0,                   // digit: rol esi, 4; mov ax, si
    0x24, 0x0f, 0x04, 0x30, 0x3c, 0x39,                   // and al, 15; add al, '0'; cmp al, '9'
    0x76, 0x02, 0x04, 0x27,                               // jbe put1; add al, 'a' - '9' - 1
    0xe8, 0x1a, 0x00, 0xe2, 0xeb,                         // put1: call put; loop digit
    0xb0, 0x0a, 0xe8, 0x13, 0x00,                         // mov al, 10; call put
    0x66, 0xb9, 0x30, 0x75, 0x00, 0x00,                   // mov ecx, 30000
    0x67, 0xe2, 0xfd, 0xeb, 0xb7,                         // rest: loop rest (ecx); jmp tick
    0xb0, 0x21, 0xe8, 0x03, 0x00, 0xf4, 0xeb, 0xfd,       // bad: mov al, '!'; call put; hlt for ever
    0x88, 0xc4, 0xba, 0xfd, 0x03,                         // put: mov ah, al; mov dx, 0x3fd
    0xec, 0xa8, 0x20, 0x74, 0xfb,                         // wait: in al, dx; test al, 0x20; jz wait
    0xba, 0xf8, 0x03, 0x88, 0xe0, 0xee, 0xc3,             // mov dx, 0x3f8; mov al, ah; out dx, al; ret
];

/// A boot sector that hears of a DIMM in slot 0 and says no, by the registers through which ACPI's methods answer: it
/// declines with status 1 (failure), and lets go of the DIMM when it is asked to.
///
/// Source: QEMU documentation, `docs/specs/acpi_mem_hotplug`; ACPI 6.5, tables 6.56 and 6.57.
#[rustfmt::skip]
const DECLINER: [u8; 48] = [
    0xfb, 0xf4, 0x66, 0x31, 0xc0,                         // sti; again: hlt; xor eax, eax
    0xba, 0x00, 0x0a, 0x66, 0xef,                         // mov dx, 0xa00; out dx, eax (slot 0)
    0xba, 0x14, 0x0a, 0xec,                               // mov dx, 0xa14; in al, dx (what there is)
    0xa8, 0x02, 0x75, 0x09, 0xa8, 0x04, 0x74, 0xeb,       // test al, 2; jnz added; test al, 4; jz again
    0xb0, 0x08, 0xee, 0xeb, 0xe6,                         // mov al, 8; out dx, al (let go); jmp again
    0xb0, 0x02, 0xee, 0xba, 0x04, 0x0a,                   // added: mov al, 2; out dx, al (heard); mov dx, 0xa04
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x66, 0xef,       // mov eax, 1; out dx, eax (device check)
    0xba, 0x08, 0x0a, 0x66, 0xef, 0xeb, 0xd1,             // mov dx, 0xa08; out dx, eax (failure); jmp again
];

/// RAM of the test guests: small, so that moving it is quick.
const MEMORY: u64 = 16 << 20;

pub fn qemu() -> &'static QemuBinary {
    static QEMU: OnceLock<QemuBinary> = OnceLock::new();
    QEMU.get_or_init(|| {
        let path = find_qemu().expect("qemu-system-x86_64 is installed (cargo xtask test installs it)");
        QemuBinary::inspect(&path).expect("it tells its version")
    })
}

/// A newer QEMU than the installed one, unpacked by `cargo xtask setup` into the cache beside what cargo builds, or
/// wherever `GNOMON_NEWER_QEMU` says.
pub fn newer_qemu() -> &'static QemuBinary {
    static QEMU: OnceLock<QemuBinary> = OnceLock::new();
    QEMU.get_or_init(|| {
        let cached = || {
            let ourselves = std::env::current_exe().expect("ourselves");
            // target/debug/deps/it-0123
            ourselves.ancestors().nth(3).expect("a target folder").join("gnomon-cache/newer-qemu")
        };
        let root = std::env::var_os("GNOMON_NEWER_QEMU").map_or_else(cached, PathBuf::from);
        let qemu = QemuBinary::unpacked(&root).unwrap_or_else(|e| panic!("{e} (cargo xtask setup unpacks it)"));
        assert!(qemu.version > self::qemu().version, "{} is not newer than the installed QEMU", qemu.version);
        qemu
    })
}

/// A directory for guests; what still runs in it is killed at the end, also of a test that failed.
pub struct Stable {
    path: PathBuf,
    dir: Option<TempDir>,
}

impl Stable {
    pub fn new() -> Stable {
        let dir = TempDir::new().expect("a directory");
        Stable { path: dir.path().to_path_buf(), dir: Some(dir) }
    }

    /// A directory that another process made and will clean.
    pub fn at(path: PathBuf) -> Stable {
        Stable { path, dir: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The description of a guest that ticks, from a disk of its own kind.
    pub fn ticker(&self) -> VmSpec {
        self.sector("ticker", &TICKER)
    }

    /// The description of a guest that declines DIMMs.
    pub fn decliner(&self) -> VmSpec {
        self.sector("decliner", &DECLINER)
    }

    fn sector(&self, name: &str, code: &[u8]) -> VmSpec {
        let disk = self.path.join(format!("{name}.img"));
        let mut image = vec![0u8; 1 << 20];
        image[..code.len()].copy_from_slice(code);
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(&disk, image).expect("written");
        let disk = DiskSpec { read_only: true, ..DiskSpec::raw_file("boot", &disk) };
        VmSpec { accel: Accel::Tcg, disks: vec![disk], ..VmSpec::new(name, MEMORY) }
    }

    pub fn launch(&self, name: &str, spec: &VmSpec, role: Role) -> Qemu {
        self.try_launch(name, spec, role).expect("QEMU starts")
    }

    pub fn try_launch(&self, name: &str, spec: &VmSpec, role: Role) -> Result<Qemu, ProcessError> {
        self.launch_by(qemu(), name, spec, role, None)
    }

    /// With a QEMU and RAM of the caller's choice.
    pub fn launch_by(
        &self,
        qemu: &QemuBinary,
        name: &str,
        spec: &VmSpec,
        role: Role,
        ram: Option<RamLoan<'_>>,
    ) -> Result<Qemu, ProcessError> {
        let (dir, resolved, host_args) = (self.home(name), settled(spec), qemu.host_args());
        Qemu::launch(&Launch {
            qemu: &qemu.path,
            host_args: &host_args,
            spec,
            resolved: &resolved,
            dir: &dir,
            role,
            ram,
        })
    }

    pub fn home(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What a guest has printed so far, from the file QEMU keeps.
    pub fn console(&self, name: &str) -> String {
        let log = fs::read(VmPaths::new(&self.home(name)).console_log()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Stable {
    fn drop(&mut self) {
        if self.dir.is_none() {
            return;
        }
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if let Ok(qemu) = Qemu::adopt_dir(&entry.path()) {
                let _ = qemu.kill();
            }
        }
    }
}

pub fn settled(spec: &VmSpec) -> Resolved {
    let machines = qemu().machines().expect("it lists its machines");
    let kvm = if spec.accel == Accel::Kvm { Ok(()) } else { Err("tests do not need it") };
    resolve(spec, qemu().version, &machines, kvm).expect("it can be settled")
}

/// The live console of a guest.
pub struct Console(BufReader<UnixStream>);

impl Console {
    pub fn open(home: &Path) -> Console {
        let stream = UnixStream::connect(VmPaths::new(home).console()).expect("a console");
        stream.set_read_timeout(Some(LONG)).expect("a timeout");
        Console(BufReader::new(stream))
    }

    /// The next whole tick. The first line after connecting may be cut and is left out.
    pub fn tick(&mut self) -> u32 {
        loop {
            let mut line = String::new();
            let n = self.0.read_line(&mut line).expect("the guest speaks");
            assert!(n > 0, "the guest has ended");
            assert!(!line.contains('!'), "the guest found a page that is wrong: {line}");
            if let (9, Ok(tick)) = (line.len(), u32::from_str_radix(line.trim(), 16)) {
                return tick;
            }
        }
    }
}

/// The ticks of a console log, in order. Lines that a move has cut in two are left out.
pub fn ticks(log: &str) -> Vec<u32> {
    assert!(!log.contains('!'), "the guest found a page that is wrong");
    let whole = log.split_inclusive('\n').filter(|line| line.len() == 9);
    whole.filter_map(|line| u32::from_str_radix(line.trim_end(), 16).ok()).collect()
}

pub fn at_once() -> StopDeadlines {
    StopDeadlines { powerdown: Duration::ZERO, quit: LONG }
}

/// A descriptor that holds `text`.
pub fn file_with(text: &str) -> File {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(text.as_bytes()).and_then(|()| file.rewind()).expect("written");
    file
}
