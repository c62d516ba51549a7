//! Stock QEMU as it is: its process, its monitor, its migration stream. Nothing in QEMU is patched.
//!
//! ```text
//!  VmSpec ── resolve ──► Resolved ── command_line ──► Qemu (a process that outlives us)
//!                                                       │ qmp()
//!         GuestRam (a memfd)    Outgoing, Incoming ◄─── Qmp ───► EventStream
//!                               capture, Standby ◄─────┘
//! ```
//!
//! Where to enter: [`VmSpec`] says what a guest is, [`Qemu::launch`] starts it, [`Qemu::adopt`] finds it again
//! after the daemon was restarted, [`Qmp`] talks to it, [`Outgoing`] and [`Incoming`] move it with its RAM,
//! [`capture`] and [`Standby`] without, [`GuestRam`] is its RAM, [`read_stream`] knows what QEMU writes, [`prove_kvm`] and
//! [`HostFacts`] say what the host can do. [`track`] tells which pages of a guest's RAM were written. [`GuestAgent`] has a
//! command run in a guest. [`add_dimm`] and [`remove_dimm`] change how much memory a running guest has.
//!
//! Everything here blocks and uses plain threads: callers on an async runtime call it from a blocking thread. All
//! waits are for an event with a deadline; nothing sleeps and looks again.

mod dirty;
mod doctor;
mod guest_agent;
mod kvm;
mod memory;
mod migrate;
mod process;
mod processor;
mod qmp;
mod ram;
mod spec;
mod state;
mod stream;

pub use dirty::{
    CompareTracker, DirtyTracker, InjectError, PagemapTracker, ScanCost, SelfTest, SelfTestError, SoftDirtyTracker,
    TierTest, TierVerdict, TrackError, TrackTarget, TrackerFacts, TrackerTier, Tracking, boot_sector, self_test,
    track,
};
pub use doctor::{HostFacts, KvmNode, QemuBinary, find_qemu};
pub use guest_agent::{
    ANSWER_LIMIT, Answer, AnswerError, Answers, GUEST_AGENT_PORT, GuestAgent, GuestAgentError, GuestExit,
    GuestProcess, OUTPUT,
};
pub use kvm::{KVM_CPU, KvmProof, PROOF_TIMEOUT, prove_kvm, prove_with_kernel};
pub use memory::{
    Dimm, DimmAnswer, DimmEvent, Filling, GUEST_BLOCK, HeldMemory, Looked, MemoryDeviceError, NewDimm, OfferedDimm,
    PageTables, Part, PluggedDimm, PresenceError, VirtioMem, add_dimm, added as added_memory, dimms, guest_step,
    held_memory, mapped_files, memory_of, present, remove_dimm, resize_virtio_mem, resolved_now, sweep_backends,
    virtio_mem,
};
pub use migrate::{
    Canceller, DEFAULT_DOWNTIME, Incoming, IncomingFrom, MigrateError, Outgoing, OutgoingOptions, Stage, Switched,
};
pub use process::{ExitWatch, Exited, Launch, ProcessError, Qemu, QemuRecord, StopDeadlines, end_leftover};
pub use processor::{Processor, ProcessorDifference};
pub use qmp::{
    CloseReason, EventError, EventStream, MachineInfo, MemoryBackend, MigrationProgress, MigrationStatus, Qmp,
    QmpError, QmpEvent, RunState, VmStatus,
};
pub use ram::{GuestMemory, GuestRam, Page, RAM_ID, RamError, RamLoan, RamRecord, RamSharing, RamView, RamWriter};
pub use spec::{
    Accel, Accelerator, DiskSource, DiskSpec, MAX_INTERFACE, MacAddress, NetSpec, NicSpec, NoMacAddress, NoVersion,
    PortSpec, QemuVersion, RamBacking, RamFd, Resolved, Role, SettledDimm, SpecError, Uplink, VmPaths, VmSpec,
    command_line, resolve, safe_memory_size,
};
pub use state::{
    CaptureOptions, CapturePhases, Checkpoint, Frozen, Loaded, STATE_LIMIT, Standby, StateBlob, StateError, capture,
    load,
};
pub use stream::{DEVICES_LIMIT, DeviceSection, Difference, Inventory, RamBlock, StreamError, read_stream};
