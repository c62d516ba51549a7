//! A Debian guest with PostgreSQL: Debian's packages unpacked, not installed, as an ext4 disk, and Debian's kernel.
//!
//! The database is made here, with the guest's own programs, and the same unpacked packages give the host its client:
//! nothing of PostgreSQL is installed on the host. Needs root, for the files have owners and the programs run in a chroot.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    debian::{Archive, PrivateApt},
    initramfs::Archive as Initramfs,
    kernel,
    setup::{self, Refusal},
    sh,
};

/// What the guest is made of. What these need comes with them: the C library, OpenSSL, ICU and some fifty more.
const PACKAGES: &[&str] = &["postgresql", "dash", "coreutils", "libc-bin", "busybox-static"];

/// What they ask for and the guest does not use: the compiler of queries (`jit` is off), and what configures packages
/// when they are installed. It is half of all that would be fetched.
const WITHOUT: &[&str] =
    &["libllvm14", "postgresql-common", "postgresql-client-common", "ssl-cert", "locales", "debconf"];

/// Below this, nobody in the guest looks: the compiler's plug-in, and paper.
const LEFT_OUT: &str = "usr/lib/postgresql/*/lib/bitcode usr/lib/postgresql/*/lib/llvmjit* usr/share/doc usr/share/man \
                        usr/share/locale usr/share/info";

/// Its disk and its network card.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net"];

/// Room for 110 MB of programs, the database, its log and some minutes of a workload.
const DISK: &str = "384M";

/// The user that runs the database; nobody outside knows it.
const POSTGRES: u32 = 100;

const PREPARE: &str = include_str!("prepare.sh");
const INIT: &str = include_str!("init.sh");
const INITRD: &str = include_str!("initrd.sh");

/// Everything QEMU needs to boot the guest, and the host to talk to it.
#[derive(Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial ram disk.
    pub initrd: PathBuf,
    /// The disk, to be copied.
    pub disk: PathBuf,
    /// The unpacked packages.
    pub root: PathBuf,
}

/// Makes the guest, unless the cache has it as it would be made.
pub fn build() -> Result<Image> {
    let kernel = kernel::ensure()?;
    let folder = sh::cache().join("postgres");
    let recipe = format!("{PACKAGES:?} {WITHOUT:?} {LEFT_OUT} {DISK}\n{PREPARE}{INIT}");
    if fs::read_to_string(folder.join("recipe")).is_ok_and(|made| made == recipe) {
        return pack(&kernel, &folder);
    }
    setup::refuse_unless_root("to make a guest's disk and to run its programs")?;
    let part = sh::cache().join("postgres.part");
    let _ = fs::remove_dir_all(&part);
    let root = part.join("root");
    fetch(&part, &root)?;
    furnish(&root)?;
    prepare(&root)?;
    let mut format = Command::new("/usr/sbin/mkfs.ext4");
    sh::run_aside(format.args(["-q", "-F", "-d"]).arg(&root).arg(part.join("disk.raw")).arg(DISK))?;
    fs::write(part.join("recipe"), recipe)?;
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&part, &folder).with_context(|| format!("cannot make {}", folder.display()))?;
    pack(&kernel, &folder)
}

fn fetch(part: &Path, root: &Path) -> Result<()> {
    let wanted = || Refusal("the guest with PostgreSQL is made of Debian's packages: run this on Debian".to_owned());
    let archive = Archive::of_host().ok_or_else(wanted)?;
    let apt = part.join("apt");
    eprintln!("PostgreSQL: fetching it and what it runs on of {} (51 MB, kept as a disk)", archive.suite);
    PrivateApt::from_nothing(&apt, &archive, &[&archive.suite], WITHOUT)?.unpack(&archive.suite, PACKAGES, root)?;
    fs::remove_dir_all(&apt)?;
    let mut forget = Command::new("sh");
    sh::run_aside(forget.arg("-c").arg(format!("rm -r -- {LEFT_OUT}")).current_dir(root))
}

/// What an installation would have made: folders, the two users, the null device, the first program.
fn furnish(root: &Path) -> Result<()> {
    for folder in ["dev", "proc", "sys", "run", "tmp", "var/lib/postgresql"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let id = POSTGRES;
    let users = format!("root:x:0:0::/:/bin/sh\npostgres:x:{id}:{id}::/var/lib/postgresql:/bin/sh\n");
    fs::write(root.join("etc/passwd"), users)?;
    fs::write(root.join("etc/group"), format!("root:x:0:\npostgres:x:{id}:\n"))?;
    if !root.join("bin/sh").exists() {
        symlink("dash", root.join("bin/sh"))?;
    }
    fs::write(root.join("sbin/init"), INIT)?;
    fs::set_permissions(root.join("sbin/init"), fs::Permissions::from_mode(0o755))?;
    let null = root.join("dev/null");
    sh::run_aside(Command::new("mknod").args(["-m", "666"]).arg(&null).args(["c", "1", "3"]))?;
    std::os::unix::fs::chown(root.join("var/lib/postgresql"), Some(id), Some(id)).map_err(Into::into)
}

/// Makes the database, with the guest's programs on the host's kernel.
fn prepare(root: &Path) -> Result<()> {
    let script = root.join("tmp/prepare.sh");
    fs::write(&script, PREPARE)?;
    let mut within = Command::new("chroot");
    within.arg(format!("--userspec={POSTGRES}:{POSTGRES}")).arg(root).args(["/bin/sh", "/tmp/prepare.sh"]);
    sh::run_aside(within.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))?;
    fs::remove_file(script).map_err(Into::into)
}

fn pack(kernel: &kernel::Kernel, folder: &Path) -> Result<Image> {
    let root = folder.join("root");
    let mut archive = Initramfs::default();
    for name in ["bin", "dev", "disk", "modules"] {
        archive.folder(name);
    }
    archive.modules(&kernel::modules(kernel, MODULES)?);
    archive.file("bin/busybox", &fs::read(root.join("bin/busybox")).context("the guest has no busybox")?);
    archive.file("init", INITRD.as_bytes());
    let initrd = folder.join("initrd.cpio");
    fs::write(&initrd, archive.finish()).with_context(|| format!("cannot write {}", initrd.display()))?;
    Ok(Image { kernel: kernel.image.clone(), initrd, disk: folder.join("disk.raw"), root })
}
