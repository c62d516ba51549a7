//! What it costs to see which of its memory a guest has touched: looks at the page tables of a process that has 1 GiB mapped,
//! here its own.
//!
//! Prints rows in the form of all benchmarks, as JSON. `cargo xtask bench memory --only overhead` builds and runs it.

use gnomon_qemu::{GuestRam, Part, present};
use gnomon_terms::{Bytes, PAGE_SIZE};
use serde_json::{Value, json};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const GIB: Bytes = Bytes(1 << 30);
/// Looks of each kind.
const LOOKS: usize = 41;

/// Which pages are looked at, of memory of which one page in so many was touched.
const CASES: [(&str, Part, usize); 3] = [
    ("every page, all touched", Part::All, 1),
    ("every page, every other one touched", Part::All, 2),
    ("one page in 32, all touched", Part::LeftOut, 1),
];

fn main() -> Fallible<()> {
    println!("{}", Value::Array(rows()?));
    Ok(())
}

fn rows() -> Fallible<Vec<Value>> {
    let mut samples = CASES.map(|_| Vec::new());
    for (at, (_, part, every)) in CASES.into_iter().enumerate() {
        let ram = GuestRam::create("looks", GIB)?;
        let view = ram.map_writable()?;
        for page in (0..ram.pages().0).step_by(every) {
            view.write_at(page * PAGE_SIZE, &[1])?;
        }
        for _ in 0..LOOKS {
            samples[at].push(look(&ram, part)?);
        }
    }
    let row = |((name, ..), mut micros): ((&str, _, _), Vec<f64>)| {
        micros.sort_by(f64::total_cmp);
        json!({ "case": format!("a look at 1 GiB, {name}"), "us_p50": micros[LOOKS / 2], "us_p99": micros[LOOKS * 99 / 100] })
    };
    Ok(CASES.into_iter().zip(samples).map(row).collect())
}

/// Microseconds of processor time.
fn look(ram: &GuestRam, part: Part) -> Fallible<f64> {
    let mut pages = 0;
    let looked = present(i32::try_from(std::process::id())?, ram, part, |run| pages += run.len.0)?;
    if pages == 0 {
        return Err("nothing was seen".into());
    }
    Ok((looked.took.as_secs_f64() * 1e7).round() / 10.0)
}
