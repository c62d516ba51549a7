//! The whole disk at once, from the host: `fill` writes version 0 of every record, `verify` judges every one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use crate::record::{self, Fault, Label, RECORD_SIZE};

/// Records handled between two system calls: 1 MiB, enough to hide their cost.
const BATCH: u64 = 256;

/// Faults kept in words.
const FAULTS_KEPT: usize = 10;

/// What `verify` found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Records judged.
    pub records: u64,
    /// Records that are not what was last written.
    pub corrupt: u64,
    /// The first few of them in words.
    pub faults: Vec<(u64, Fault)>,
}

/// Writes `records` records of version 0 and makes them durable. Creates the file if it is not there.
pub fn fill(path: &Path, seed: u64, records: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    let mut batch = vec![0; BATCH as usize * RECORD_SIZE];
    for first in (0..records).step_by(BATCH as usize) {
        let count = BATCH.min(records - first) as usize;
        let bytes = &mut batch[..count * RECORD_SIZE];
        for (index, record) in (first..).zip(bytes.chunks_exact_mut(RECORD_SIZE)) {
            record::write(Label { index, version: 0, seed }, record);
        }
        file.write_all(bytes)?;
    }
    file.sync_all()
}

/// Reads all records and judges each against `versions`. A disk that ends early is an error.
pub fn verify(path: &Path, seed: u64, versions: &[u32]) -> io::Result<Verdict> {
    let mut file = File::open(path)?;
    let mut batch = vec![0; BATCH as usize * RECORD_SIZE];
    let mut verdict = Verdict::default();
    for expected in versions.chunks(BATCH as usize) {
        let bytes = &mut batch[..expected.len() * RECORD_SIZE];
        file.read_exact(bytes)?;
        for (&version, bytes) in expected.iter().zip(bytes.chunks_exact(RECORD_SIZE)) {
            let label = Label { index: verdict.records, version: u64::from(version), seed };
            verdict.note(label.index, record::check(label, bytes));
        }
    }
    Ok(verdict)
}

impl Verdict {
    fn note(&mut self, index: u64, found: Result<(), Fault>) {
        self.records += 1;
        if let Err(fault) = found {
            self.corrupt += 1;
            if self.faults.len() < FAULTS_KEPT {
                self.faults.push((index, fault));
            }
        }
    }

    /// The verdict as one JSON line; the faults are in words for a reader.
    pub fn json(&self) -> String {
        let faults: Vec<String> =
            self.faults.iter().map(|(index, fault)| format!("\"record {index}: {fault}\"")).collect();
        let verified = self.corrupt == 0;
        format!(
            "{{\"records\":{},\"corrupt\":{},\"verified\":{verified},\"faults\":[{}]}}",
            self.records,
            self.corrupt,
            faults.join(",")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_filled_disk_verifies_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fill(&path, 3, 300).unwrap();
        assert_eq!(verify(&path, 3, &vec![0; 300]).unwrap().corrupt, 0);
        assert_eq!(verify(&path, 4, &vec![0; 300]).unwrap().corrupt, 300);

        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"damage", 299 * RECORD_SIZE as u64 + 1000).unwrap();
        let mut versions = vec![0; 300];
        versions[7] = 1;
        let verdict = verify(&path, 3, &versions).unwrap();
        assert_eq!(verdict.faults.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [7, 299]);
        assert!(verify(&path, 3, &vec![0; 301]).is_err(), "a short disk must not pass");
    }
}
