//! Each command and each refusal, through libnbd.

use std::{os::unix::fs::MetadataExt, sync::Arc};

use gnomon_volume::{disk::DiskError, front::nbd::NbdLimits};

use crate::rig::{BrokenDisk, HeldDisk, Rig, noise, worn_out};

#[test]
fn trim_and_zeroes_give_storage_back_or_keep_it() {
    let rig = Rig::new(8 << 20);
    rig.python("h.pwrite(b'x' * (4 << 20), 0, nbd.CMD_FLAG_FUA)");
    let blocks = || std::fs::metadata(rig.file()).unwrap().blocks();
    let full = blocks();
    rig.python(
        "h.zero(1 << 20, 0, nbd.CMD_FLAG_NO_HOLE); h.flush()\n\
         assert h.pread(1 << 20, 0) == bytearray(1 << 20)",
    );
    assert_eq!(blocks(), full, "NO_HOLE keeps the storage");
    rig.python(
        "h.trim(1 << 20, 1 << 20, nbd.CMD_FLAG_FUA); h.zero(1 << 20, 2 << 20, nbd.CMD_FLAG_FUA)\n\
         assert h.pread(2 << 20, 1 << 20) == bytearray(2 << 20)\n\
         assert h.pread(1 << 20, 3 << 20) == b'x' * (1 << 20)",
    );
    assert_eq!(blocks(), full - 2 * 2048, "trim and zero give 2 MiB back");
}

#[test]
fn block_status_tells_allocation_and_place() {
    let rig = Rig::over(tempfile::tempdir().unwrap(), HeldDisk::new(noise(3, 1 << 20)), false, NbdLimits::default());
    rig.python(
        "seen = {}\n\
         def note(context, offset, entries, err): seen[context] = list(entries)\n\
         h.block_status(1 << 20, 0, note)\n\
         assert seen == {'base:allocation': [1 << 20, 0], 'gnomon:shadow': [1 << 19, 1, 1 << 19, 0]}, seen\n\
         h.block_status(1000, (1 << 19) - 10, note, nbd.CMD_FLAG_REQ_ONE)\n\
         assert seen['gnomon:shadow'] == [10, 1], seen\n\
         fails(errno.EINVAL, lambda: h.block_status(2, (1 << 20) - 1, note))",
    );
}

#[test]
fn reads_come_in_chunks_and_whole_when_asked() {
    let rig = Rig::new(8 << 20);
    rig.python(
        "import os\n\
         data = os.urandom(1 << 20)\n\
         h.pwrite(data, 2 << 20)\n\
         chunks = []\n\
         def note(part, offset, status, err): chunks.append((status, offset, len(part)))\n\
         got = h.pread_structured(4 << 20, 1 << 20, note)\n\
         assert got == bytearray(1 << 20) + data + bytearray(2 << 20)\n\
         assert {c[0] for c in chunks} == {nbd.READ_DATA, nbd.READ_HOLE}\n\
         assert sum(c[2] for c in chunks if c[0] == nbd.READ_DATA) == 1 << 20\n\
         chunks.clear()\n\
         got = h.pread_structured(4 << 20, 1 << 20, note, nbd.CMD_FLAG_DF)\n\
         assert len(chunks) == 1 and got[1 << 20:2 << 20] == data\n\
         g = nbd.NBD(); g.set_request_structured_replies(False); g.connect_uri(uri)\n\
         assert not g.get_structured_replies_negotiated()\n\
         assert g.pread(4 << 20, 1 << 20) == got and g.pread(10, 2 << 20) == data[:10]",
    );
}

#[test]
fn the_longest_requests_pass() {
    let rig = Rig::new(64 << 20);
    rig.python(
        "import os\n\
         data = os.urandom(32 << 20)\n\
         h.pwrite(data, 12345)\n\
         assert h.pread(32 << 20, 12345) == data\n\
         assert h.pread(32 << 20, 12345, nbd.CMD_FLAG_DF) == data\n\
         h.pwrite(data, 4097, nbd.CMD_FLAG_FUA)\n\
         assert h.pread(32 << 20, 4097) == data\n\
         h.cache(64 << 20, 0); h.zero(64 << 20, 0); h.trim(64 << 20, 0)\n\
         assert h.pread(1, 4097) == b'\\0'",
    );
}

#[test]
fn what_must_not_be_is_refused_and_the_connection_lives() {
    let rig = Rig::new(1 << 20);
    rig.python(
        "end = 1 << 20\n\
         fails(errno.EINVAL, lambda: h.pread(2, end - 1))\n\
         fails(errno.EINVAL, lambda: h.pread(1, (1 << 63) - 1))\n\
         fails(errno.ENOSPC, lambda: h.pwrite(b'ab', end - 1))\n\
         fails(errno.ENOSPC, lambda: h.pwrite(b'x' * 300000, end - 1, nbd.CMD_FLAG_FUA))\n\
         fails(errno.ENOSPC, lambda: h.zero(2, end - 1))\n\
         fails(errno.EINVAL, lambda: h.trim(2, end - 1))\n\
         fails(errno.EINVAL, lambda: h.cache(2, end - 1))\n\
         assert h.pread(1, end - 1) == b'\\0'\n\
         g = nbd.NBD()\n\
         fails(errno.ENOENT, lambda: g.connect_uri(uri.replace('disk?', 'nothing?')))",
    );
}

#[test]
fn a_read_only_export_refuses_every_write() {
    let rig = Rig::read_only(&noise(4, 1 << 20));
    rig.python(
        "assert h.is_read_only()\n\
         before = h.pread(1 << 20, 0)\n\
         for do in [lambda: h.pwrite(b'x' * 70000, 0), lambda: h.zero(1, 0), lambda: h.trim(1, 0)]: fails(errno.EPERM, do)\n\
         assert h.pread(1 << 20, 0) == before\n\
         h.flush()",
    );
}

#[test]
fn a_failing_disk_is_told_in_the_protocols_words() {
    let full = || DiskError::Full { at: 0, len: 1 };
    let fenced = || DiskError::Fenced { why: "epoch e5 writes now".into() };
    let away = || DiskError::Unreachable { at: 0, len: 1, place: "p2".into() };
    for (error, code) in [(full as fn() -> DiskError, "ENOSPC"), (fenced, "EPERM"), (away, "EIO"), (worn_out, "EIO")]
    {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::over(dir, Arc::new(BrokenDisk(error)), false, NbdLimits::default());
        rig.python(&format!(
            "code = errno.{code}\n\
             for do in [lambda: h.pread(512, 0), lambda: h.pread(1 << 20, 0), lambda: h.pwrite(b'x', 0), h.flush,\n\
                lambda: h.pread(1 << 20, 0, nbd.CMD_FLAG_DF), lambda: h.pwrite(b'x', 0, nbd.CMD_FLAG_FUA),\n\
                lambda: h.pwrite(b'x' * 700000, 0), lambda: h.trim(1, 0), lambda: h.zero(1, 0)]: fails(code, do)\n\
             g = nbd.NBD(); g.set_request_structured_replies(False); g.connect_uri(uri)\n\
             fails(code, lambda: g.pread(512, 0))"
        ));
    }
}

#[test]
fn requests_that_wait_do_not_hold_up_the_others() {
    let disk = HeldDisk::new(noise(5, 1 << 20));
    let rig = Rig::over(tempfile::tempdir().unwrap(), disk.clone(), false, NbdLimits::default());
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            rig.python(
                "far = nbd.Buffer(512); near = nbd.Buffer(512); order = []\n\
                 def done(name):\n    def note(err): order.append(name); return 1\n    return note\n\
                 h.aio_pread(far, 1 << 19, done('far'))\n\
                 h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(600)), 3 << 18, done('write'))\n\
                 h.aio_pread(near, 0, done('near'))\n\
                 while order != ['near']: h.poll(-1)\n\
                 g = nbd.NBD(); g.connect_uri(uri); g.pwrite(b'go', 0)\n\
                 while len(order) < 3: h.poll(-1)\n\
                 assert far.to_bytearray() == g.pread(512, 1 << 19)",
            );
        });
        disk.await_waiting(2);
        // The near read is answered although two requests wait; then the script tells by writing "go".
        let mut start = [0; 2];
        while &start != b"go" && !client.is_finished() {
            gnomon_volume::disk::Disk::read_at(&*disk, &mut start, 0).unwrap();
            std::thread::yield_now();
        }
        disk.let_go();
    });
}
