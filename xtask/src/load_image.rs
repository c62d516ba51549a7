//! A guest with a real load: nginx and PostgreSQL of Debian, unpacked into a first file system, and an init that has them
//! do something. Nothing is installed; the database is made once, here, because an emulated guest would take a minute.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    debian::{Archive, PrivateApt},
    setup::{self, Refusal},
    sh,
};

/// Servers, and who asks them: ab and pgbench.
const PACKAGES: &[&str] = &["nginx-light", "apache2-utils", "postgresql-15", "busybox-static"];

/// What these ask for, and a guest without a package manager or a just-in-time compiler does not use.
const UNWANTED: &[&str] =
    &["libllvm14", "postgresql-common", "postgresql-client-common", "ssl-cert", "locales", "debconf", "lsb-base"];

/// Folders that nobody reads there: they are half of the whole.
const UNREAD: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/perl",
    "usr/lib/postgresql/15/lib/bitcode",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
];

/// Folders that packages do not bring.
const FOLDERS: &[&str] = &["dev", "proc", "sys", "run", "pg", "var/lib/nginx", "var/log/nginx", "www"];

const PASSWD: &str = "root:x:0:0::/:/bin/sh\npostgres:x:1000:1000::/pg:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n";
const GROUP: &str = "root:x:0:\npostgres:x:1000:\nwww-data:x:33:\n";

const NGINX: &str = "\
user www-data;
worker_processes 1;
error_log /dev/null;
pid /run/nginx.pid;
events { worker_connections 64; }
http {
  access_log /var/log/nginx/access.log;
  server { listen 127.0.0.1:80; root /www; }
}
";

/// A page of this many random bytes, written in 16 KiB of text.
const PAGE: usize = 12_288;

/// Run once, as user 1000 in the file system to be: a database of 200,000 accounts. `fsync` is off for this only.
const PREPARE: &str = "\
set -e
export PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin LC_ALL=C
cd /pg
initdb -D /pg/data --no-sync -A trust -U postgres --wal-segsize=1 -E UTF8 --locale=C >/pg/log 2>&1
pg_ctl -D /pg/data -w -l /pg/log -o '-c unix_socket_directories=/pg -c listen_addresses= -c fsync=off' start
pgbench -h /pg -U postgres -i -q -s 2 postgres
pg_ctl -D /pg/data -w stop
rm /pg/log
";

/// The guest's first program. Both servers always run; the kernel line's `load=` says which of them is asked. The database
/// syncs as it should: to memory, for the guest has no disk.
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /sbin
export PATH=/usr/lib/postgresql/15/bin:/usr/bin:/usr/sbin:/bin:/sbin LC_ALL=C
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm && chmod 1777 /dev/shm
ifconfig lo 127.0.0.1 up
options='-c unix_socket_directories=/pg -c listen_addresses= -c shared_buffers=64MB -c jit=off -c max_wal_size=64MB'
su postgres -c \"pg_ctl -D /pg/data -w -l /pg/log -o '$options' start\" >/dev/null || cat /pg/log
nginx -c /nginx.conf || poweroff -f
for word in $(cat /proc/cmdline); do case $word in load=*) load=${word#load=};; esac; done
case $load in
  idle) ;;
  web) while :; do ab -q -k -c 8 -n 100000 http://127.0.0.1/page.html >/dev/null || poweroff -f; done & ;;
  database) su postgres -c 'pgbench -h /pg -U postgres -n -c 4 -T 36000 postgres' >/dev/null || poweroff -f & ;;
  *) echo \"no such load: $load\"; poweroff -f ;;
esac
sleep 5
echo \"gnomon: $load is at work\"
while :; do sleep 3600; done
";

/// Makes the file system, unless the cache has it; returns the archive.
pub fn ensure() -> Result<PathBuf> {
    let (folder, done) = (sh::cache().join("load.part"), sh::cache().join("load.cpio"));
    if done.exists() {
        return Ok(done);
    }
    setup::refuse_unless_root("to make a guest's file system and to run its programs")?;
    let _ = fs::remove_dir_all(&folder);
    let root = folder.join("root");
    eprintln!("load: fetching {} (97 MB, of which {} keeps 190)", PACKAGES.join(", "), done.display());
    fetch(&folder, &root)?;
    furnish(&root)?;
    make_database(&root)?;
    let part = folder.join("load.cpio");
    pack(&root, &part)?;
    fs::rename(&part, &done).with_context(|| format!("cannot make {}", done.display()))?;
    fs::remove_dir_all(&folder)?;
    Ok(done)
}

fn fetch(folder: &Path, root: &Path) -> Result<()> {
    let wanted = || Refusal("the guest with a load is made of Debian's packages: run this on Debian".to_owned());
    let archive = Archive::of_host().ok_or_else(wanted)?;
    let apt = PrivateApt::from_nothing(&folder.join("apt"), &archive, &[&archive.suite], UNWANTED)?;
    apt.unpack(&archive.suite, PACKAGES, root)?;
    for folder in UNREAD {
        let _ = fs::remove_dir_all(root.join(folder));
    }
    Ok(())
}

/// What packages do not bring.
fn furnish(root: &Path) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    let noise = sh::capture(Command::new("sh").arg("-c").arg(format!("head -c {PAGE} /dev/urandom | base64")))?;
    let files: [(&str, &str); 6] = [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("nginx.conf", NGINX),
        ("www/page.html", &noise),
        ("prepare", PREPARE),
        ("init", INIT),
    ];
    for (name, text) in files {
        let path = root.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let _ = fs::remove_file(root.join("bin/sh"));
    symlink("busybox", root.join("bin/sh"))?;
    std::os::unix::fs::chown(root.join("pg"), Some(1000), Some(1000))?;
    Ok(())
}

/// In a mount namespace of its own: what is mounted there goes with the process.
fn make_database(root: &Path) -> Result<()> {
    let inside = "mount --bind /dev \"$0/dev\" && exec chroot --userspec=1000:1000 \"$0\" /bin/sh /prepare";
    sh::run_aside(Command::new("unshare").args(["-m", "sh", "-c", inside]).arg(root))?;
    Ok(fs::remove_file(root.join("prepare"))?)
}

fn pack(root: &Path, archive: &Path) -> Result<()> {
    let mut find = Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let names = find.stdout.take().context("find has no output")?;
    let mut cpio = Command::new("cpio");
    cpio.args(["-o", "-H", "newc", "--quiet"]).current_dir(root).stdin(names).stdout(File::create(archive)?);
    let packed = cpio.status().context("cpio is installed by `cargo xtask setup`")?;
    anyhow::ensure!(find.wait()?.success() && packed.success(), "the guest's file system could not be packed");
    Ok(())
}
