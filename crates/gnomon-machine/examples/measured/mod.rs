//! A guest that is measured, for the programs beside this one.

use std::{error::Error, path::Path, time::Duration};

use gnomon_qemu::{Accel, Launch, Qemu, QemuBinary, Role, VmSpec, find_qemu, resolve};

/// What a measurement ends with.
pub type Fallible<T> = Result<T, Box<dyn Error>>;

/// How long a guest or QEMU may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Boots a guest under TCG, in `home/vm`.
pub fn boot(home: &Path, spec: VmSpec) -> Fallible<Qemu> {
    let binary = QemuBinary::inspect(&find_qemu().ok_or("no qemu-system-x86_64 here")?)?;
    let spec = VmSpec { accel: Accel::Tcg, ..spec };
    let resolved = resolve(&spec, binary.version, &binary.machines()?, Err("measured under TCG"))?;
    let launch = Launch {
        qemu: &binary.path,
        host_args: &[],
        spec: &spec,
        resolved: &resolved,
        dir: &home.join("vm"),
        role: Role::Boot,
        ram: None,
    };
    Ok(Qemu::launch(&launch)?)
}
