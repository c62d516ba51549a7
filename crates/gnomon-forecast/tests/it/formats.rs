//! Traces of others: a file of each format as its tool writes it, what is read from it, and what is refused.

use gnomon_forecast::trace::{Format, Trace, TraceError};
use gnomon_terms::Op::{self, Discard, Read, Write};

/// Microseconds, first block, blocks, what.
type Row = (u64, u64, u64, Op);

fn rows(format: Format, text: &str) -> Vec<Row> {
    rows_of(&Trace::decode(format, text.as_bytes()).unwrap_or_else(|error| panic!("{format:?}: {error}")))
}

fn rows_of(trace: &Trace) -> Vec<Row> {
    let row = |a: &gnomon_terms::Access| (a.at.as_nanos() / 1000, a.extent.start.0, a.extent.len.0, a.op);
    trace.accesses.iter().map(row).collect()
}

fn refused(format: Format, text: &str) -> String {
    Trace::decode(format, text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn microsoft_research() {
    let text = "128166372003061629,hm,0,Read,383496192,32768,413\n128166372016382155,hm,0,Write,4096,512,1\n";
    let expected = [(0, 93_627, 8, Read), (1_332_053, 1, 1, Write)];
    assert_eq!(rows(Format::Msr, text), expected);
    assert_eq!(rows(Format::Csv, text), expected, "told apart from ours by its seven fields");
    let headed = format!("Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime\n{text}");
    assert_eq!(rows(Format::Msr, &headed), expected);
    assert!(refused(Format::Msr, "1,hm,0,Trim,0,1,1").contains("neither Read nor Write"));
    assert!(refused(Format::Msr, "0,hm,0,Read,18446744073709551615,1,1").contains("beyond 16 TiB"));
}

#[test]
fn blkparse() {
    let text = "\
  8,0    3        1     0.000001000   697  G   R 8 + 8 [cat]
  8,0    3        2     0.000002000   697  Q   R 8 + 16 [cat]
  8,0    1        3     0.001000999   697  Q  WS 32 + 8 [a b c]
  8,0    1        4     0.002000000   697  Q FWS [flush]
  8,0    1        5     0.003000000   697  Q   D 64 + 2048 [fstrim]
  8,0    1        6     0.003000000     0  C   R 8 + 16 [0]
  8,0    1        0     0.003500000     0  m   N served 42
CPU3 (sda):
 Reads Queued:           1,        8KiB\t Writes Queued:           1,        4KiB
Total (sda):
";
    let expected = [(0, 1, 2, Read), (998, 4, 1, Write), (2998, 8, 256, Discard)];
    assert_eq!(rows(Format::Blkparse, text), expected);
    let two = "8,0 0 1 0.000000000 1 Q R 8 + 8 [a]\n8,16 0 1 0.000000000 1 Q R 8 + 8 [a]\n";
    assert!(refused(Format::Blkparse, two).starts_with("line 2: a second device"));
    assert!(refused(Format::Blkparse, "8,0 0 1 0.5 1 Q R 8 + 8 [a]").contains("no time"));
    assert!(
        refused(Format::Blkparse, "8,0 0 1 0.000000000 1 Q R 18446744073709551615 + 8 [a]").contains("no sector")
    );
}

/// A record as the kernel writes it, and `more` bytes after it.
fn record(action: u32, time: u64, sector: u64, bytes: u32, more: u16, big: bool) -> Vec<u8> {
    macro_rules! put {
        ($($value:expr),*) => {{
            let mut out: Vec<u8> = Vec::new();
            $(out.extend(if big { $value.to_be_bytes().to_vec() } else { $value.to_le_bytes().to_vec() });)*
            out
        }};
    }
    let mut out = put!(0x6561_7407u32, 1u32, time, sector, bytes, action, 7u32, 0x80_0000u32, 0u32, 0u16, more);
    out.extend(vec![b'x'; usize::from(more)]);
    out
}

#[test]
fn blktrace() {
    const QUEUE: u32 = 1 | 1 << 20;
    for big in [false, true] {
        let file = [
            record(QUEUE | 1 << 17, 9_000_000, 16, 4096, 0, big),
            record(QUEUE | 1 << 16, 5_000_000, 8, 8192, 5, big),
            record(1 << 26, 5_000_000, 0, 0, 300, big),
            record(QUEUE | 1 << 17 | 1 << 29, 9_500_000, 0, 4096, 0, big),
            record(8 | 1 << 16, 9_600_000, 8, 8192, 0, big),
        ]
        .concat();
        let trace = Trace::decode(Format::Blktrace, &file).unwrap();
        assert_eq!(rows_of(&trace), [(0, 1, 2, Read), (4000, 2, 1, Write), (4500, 0, 1, Discard)]);
        assert!(matches!(Trace::decode(Format::Blktrace, &file[..file.len() - 1]), Err(TraceError::CutOff(47))));
    }
    assert!(matches!(Trace::decode(Format::Blktrace, &[0; 48]), Err(TraceError::Record { record: 1, .. })));
    let promised = &record(QUEUE | 1 << 16, 0, 8, 512, 900, false)[..60];
    assert!(matches!(Trace::decode(Format::Blktrace, promised), Err(TraceError::CutOff(60))));
}

#[test]
fn fio() {
    let three = "fio version 3 iolog\n2 /dev/vda add\n3 /dev/vda open\n10 /dev/vda read 4096 8192\n\
                 30 /dev/vda trim 0 4096\n31 /dev/vda sync 0 0\n40 /dev/vda write 8192 512\n41 /dev/vda close\n";
    assert_eq!(rows(Format::Iolog, three), [(0, 1, 2, Read), (20, 0, 1, Discard), (30, 2, 1, Write)]);
    let two = "fio version 2 iolog\nf add\nf open\nf read 0 4096\nf read 4096 4096\nf close\n";
    assert_eq!(rows(Format::Iolog, two), [(0, 0, 1, Read), (1000, 1, 1, Read)]);
    let waits = "fio version 2 iolog\nf wait 500 0\nf read 0 4096\nf read 0 1\nf wait 700 0\nf write 0 4096\n";
    assert_eq!(rows(Format::Iolog, waits), [(0, 0, 1, Read), (0, 0, 1, Read), (700, 0, 1, Write)]);
    assert!(refused(Format::Iolog, "0, 4096, 4096\n").contains("first line of an iolog"));
    assert!(refused(Format::Iolog, "fio version 3 iolog\n1 a read 0 1\n2 b read 0 1\n").contains("a second file"));
    assert!(refused(Format::Iolog, "fio version 3 iolog\n1 a wait 0 1\n").contains("unknown action"));
}

#[test]
fn nbdkit() {
    let text = "\
2020-08-06 02:07:23.080415 ListExports id=1 readonly=0 tls=0 ...
2020-08-06 02:07:23.080712 connection=1 Connect export=\"a b\" tls=0 size=0x400
2020-08-06 02:07:23.080907 connection=1 Read id=1 offset=0x0 count=0x200 ...
2020-08-06 02:07:23.080927 connection=1 ...Read id=1 return=0
2020-08-06 02:07:24.080907 connection=2 Write id=1 offset=0x1000 count=0x2000 fua=0 ...
2020-08-06 02:08:24.080907 connection=1 Zero id=2 offset=0x0 count=0x1000 trim=1 fua=0 ...
2020-08-06 02:08:25.080907 connection=1 Flush id=3 ...
2020-08-06 02:08:25.081255 connection=1 Disconnect transactions=3
";
    let expected = [(0, 0, 1, Read), (1_000_000, 1, 2, Write), (61_000_000, 0, 1, Discard)];
    assert_eq!(rows(Format::Nbdkit, text), expected);
    assert!(refused(Format::Nbdkit, "yesterday").contains("no date and time"));
    assert!(refused(Format::Nbdkit, "2020-08-06 02:07:23.080907 connection=1 Read id=1 ...").contains("no offset"));
}
