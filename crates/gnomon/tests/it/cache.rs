//! What `cargo xtask` has put into the cache beside what cargo builds: a kernel, ram disks, a newer QEMU.

use std::{fs, path::PathBuf};

/// A guest's kernel.
pub fn kernel() -> String {
    let kernels = fs::read_dir(cache().join("kernel/boot")).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_kernel =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz"));
    let kernel = kernels.into_iter().find(is_kernel);
    kernel.expect("a guest kernel in the cache: `cargo xtask test` and `demo` put it there").display().to_string()
}

/// The ram disk of that name.
pub fn initrd(name: &str) -> String {
    let path = cache().join(name);
    assert!(path.is_file(), "{} is missing: `cargo xtask test` makes it", path.display());
    path.display().to_string()
}

/// A newer QEMU than the installed one: the root of unpacked packages.
pub fn newer_qemu() -> String {
    let root = std::env::var_os("GNOMON_NEWER_QEMU").map_or_else(|| cache().join("newer-qemu"), PathBuf::from);
    assert!(root.join("usr/bin").is_dir(), "{} is missing: `cargo xtask setup` unpacks it", root.display());
    root.display().to_string()
}

fn cache() -> PathBuf {
    let ourselves = std::env::current_exe().expect("ourselves");
    // target/debug/deps/it-0123
    ourselves.ancestors().nth(3).expect("a target folder").join("gnomon-cache")
}
