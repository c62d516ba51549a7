//! Images in and out, with the real qemu-img.

use std::{fs, ops::ControlFlow, path::PathBuf};

use gnomon_terms::{Bytes, ErrorKind};
use gnomon_volume::import::{Format, ImageError, Import, allocated, export, inspect};
use tempfile::TempDir;

use crate::rig::{noise, run, text};

const MIB: u64 = 1 << 20;

/// A raw image of 32 MiB with data in the second and the last of them, and the same as qcow2.
fn images() -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (raw, qcow2) = (dir.path().join("image.raw"), dir.path().join("image.qcow2"));
    let mut content = vec![0; 32 * MIB as usize];
    content[MIB as usize..2 * MIB as usize].copy_from_slice(&noise(1, MIB as usize));
    content[31 * MIB as usize..].copy_from_slice(&noise(2, MIB as usize));
    let full = dir.path().join("full");
    fs::write(&full, content).unwrap();
    run("qemu-img", &["convert", "-O", "raw", "-f", "raw", text(&full), text(&raw)]);
    run("qemu-img", &["convert", "-c", "-O", "qcow2", "-f", "raw", text(&full), text(&qcow2)]);
    (dir, raw, qcow2)
}

fn go_on(_: f64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn raw_and_qcow2_become_the_same_thin_volume() {
    let (dir, raw, qcow2) = images();
    for (from, format) in [(&raw, Format::Raw), (&qcow2, Format::Qcow2)] {
        let to = dir.path().join(format!("volume-{}", format.name()));
        let mut seen = Vec::new();
        let import = Import { from: from.clone(), format: None, to: to.clone(), size: None };
        let size = import
            .run(&mut |done| {
                seen.push(done);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(size, Bytes(32 * MIB));
        assert!(fs::read(&to).unwrap() == fs::read(&raw).unwrap(), "{format:?}");
        assert!(allocated(&to).unwrap() <= Bytes(3 * MIB), "holes stay holes: {}", allocated(&to).unwrap());
        assert!(seen.is_sorted() && seen.iter().all(|done| (0.0..=1.0).contains(done)), "{seen:?}");
    }
}

#[test]
fn an_image_is_known_before_it_is_copied() {
    let (_dir, raw, qcow2) = images();
    let facts = inspect(&qcow2, None).unwrap();
    assert_eq!((facts.format, facts.size), (Format::Qcow2, Bytes(32 * MIB)));
    assert!(facts.data >= Bytes(2 * MIB) && facts.data < Bytes(3 * MIB), "{}", facts.data);
    assert_eq!(inspect(&raw, None).unwrap().format, Format::Raw);
    // What is said counts more than what it looks like.
    assert_eq!(inspect(&qcow2, Some(Format::Raw)).unwrap().format, Format::Raw);
}

#[test]
fn a_volume_may_be_larger_and_not_smaller() {
    let (dir, raw, qcow2) = images();
    let to = dir.path().join("volume");
    let import = |size| Import { from: qcow2.clone(), format: Some(Format::Qcow2), to: to.clone(), size: Some(size) };
    let error = import(Bytes(31 * MIB)).run(&mut go_on).unwrap_err();
    assert!(matches!(error, ImageError::WouldCut { .. }), "{error}");
    assert_eq!(import(Bytes(40 * MIB)).run(&mut go_on).unwrap(), Bytes(40 * MIB));
    let (volume, image) = (fs::read(&to).unwrap(), fs::read(&raw).unwrap());
    assert!(volume[..image.len()] == image && volume[image.len()..].iter().all(|&byte| byte == 0));
    let again = import(Bytes(40 * MIB)).run(&mut go_on).unwrap_err();
    assert!(matches!(again, ImageError::Taken { .. }), "{again}");
}

#[test]
fn what_is_cancelled_leaves_nothing() {
    let (dir, raw, _) = images();
    let to = dir.path().join("volume");
    let import = Import { from: raw, format: None, to: to.clone(), size: None };
    let before = fs::read_dir(dir.path()).unwrap().count();
    let error = import.run(&mut |_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, ImageError::Cancelled), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
}

#[test]
fn two_imports_of_one_name_do_not_meet() {
    let (dir, raw, qcow2) = images();
    let to = dir.path().join("volume");
    let import = |from: &PathBuf| Import { from: from.clone(), format: None, to: to.clone(), size: None };
    let mut second = None;
    import(&raw)
        .run(&mut |_| {
            second.get_or_insert_with(|| import(&qcow2).run(&mut go_on));
            ControlFlow::Continue(())
        })
        .expect("the first is not disturbed");
    assert!(matches!(second, Some(Err(ImageError::Busy { .. }))), "{second:?}");
    assert!(fs::read(&to).unwrap() == fs::read(&raw).unwrap());
    fs::write(dir.path().join("again.partial"), b"left by a crash").unwrap();
    let again = Import { to: dir.path().join("again"), ..import(&qcow2) };
    again.run(&mut go_on).expect("what nobody holds is used again");
    assert!(fs::read(&again.to).unwrap() == fs::read(&raw).unwrap());
}

#[test]
fn a_volume_is_given_out_as_either() {
    let (dir, raw, _) = images();
    for into in [Format::Raw, Format::Qcow2] {
        let to = dir.path().join(format!("out.{}", into.name()));
        export(&raw, &to, into, &mut go_on).unwrap();
        run("qemu-img", &["compare", "-f", "raw", "-F", into.name(), text(&raw), text(&to)]);
        assert!(allocated(&to).unwrap() <= Bytes(4 * MIB));
    }
}

#[test]
fn suspicious_images_are_refused() {
    let (dir, raw, qcow2) = images();
    let at = |name: &str| dir.path().join(name);
    let create = |args: &[&str]| run("qemu-img", &[&["create", "-q"], args].concat());
    let (leaning, outside, vmdk) = (at("leaning"), at("outside"), at("vmdk"));
    create(&["-f", "qcow2", "-F", "raw", "-b", text(&raw), text(&leaning)]);
    create(&["-f", "qcow2", "-o", &format!("data_file={}", text(&at("data"))), text(&outside), "1M"]);
    create(&["-f", "vmdk", text(&vmdk), "1M"]);
    let locked = at("locked");
    create(&[
        "--object",
        "secret,id=s,data=gnomon",
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=aes,encrypt.key-secret=s",
        text(&locked),
        "1M",
    ]);
    let mut broken = fs::read(&qcow2).unwrap();
    broken[40..48].fill(0xff);
    fs::write(at("broken"), broken).unwrap();
    let error = |path: PathBuf| inspect(&path, None).unwrap_err();
    assert!(matches!(error(leaning), ImageError::NotWhole { .. }));
    assert!(matches!(error(outside), ImageError::NotWhole { .. }));
    assert!(matches!(error(vmdk), ImageError::UnknownFormat { .. }));
    assert!(matches!(error(locked), ImageError::Encrypted { .. }));
    let broken = error(at("broken"));
    assert!(matches!(broken, ImageError::Tool { .. }) && broken.kind() == ErrorKind::Corrupt, "{broken}");
    assert!(matches!(error(at("nothing")), ImageError::Io { deed: "find", .. }));
}

#[test]
fn data_that_cannot_fit_is_refused_before_it_is_copied() {
    let (_dir, raw, _) = images();
    // A file system that never has space.
    let import = Import { from: raw, format: None, to: PathBuf::from("/proc/volume"), size: None };
    let error = import.run(&mut go_on).unwrap_err();
    assert!(matches!(error, ImageError::NoSpace { .. }) && error.kind() == ErrorKind::Unavailable, "{error}");
}
