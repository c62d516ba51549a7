//! A guest's first file system: a `newc` cpio archive, written by hand because sixty lines are less than a package.
//!
//! Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

/// Mode bits of a folder and of a program.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds an empty folder.
    pub fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER, &[]);
    }

    /// Adds a file that everybody may read and run. Its folder must be there already.
    pub fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, content);
    }

    /// Adds kernel modules to the folder `modules`, and their names in the order they are given in `modules.list`.
    pub fn modules(&mut self, modules: &[(String, Vec<u8>)]) {
        let mut list = String::new();
        for (name, bytes) in modules {
            self.file(&format!("modules/{name}.ko"), bytes);
            list.push_str(&format!("/modules/{name}.ko\n"));
        }
        self.file("modules.list", list.as_bytes());
    }

    /// Ends the archive and returns its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    /// Thirteen numbers of eight hexadecimal digits, the name with its zero, the content; both padded to four bytes.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode == FOLDER { 2 } else { 1 };
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        self.bytes.extend(b"070701");
        for number in [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend(format!("{number:08X}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    #[test]
    fn cpio_unpacks_what_we_pack() {
        let mut archive = Archive::default();
        archive.folder("modules");
        archive.file("modules/one.ko", b"12345");
        archive.file("init", &[7; 4097]);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);

        let folder = std::env::temp_dir().join(format!("gnomon-initramfs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut cpio = Command::new("cpio");
        cpio.args(["-id", "--quiet"]).current_dir(&folder).stdin(Stdio::piped());
        let mut child = cpio.spawn().expect("cpio is installed by `cargo xtask setup`");
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(folder.join("modules/one.ko")).unwrap(), b"12345");
        assert_eq!(std::fs::read(folder.join("init")).unwrap(), [7; 4097]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
