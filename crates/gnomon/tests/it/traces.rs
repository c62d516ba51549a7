//! Traces: recorded from a volume, looked at, rewritten, and replayed through the real loop.

use std::fmt::Write;

use crate::house::{House, gnomon, tool};

#[test]
fn a_recording_holds_what_clients_did() {
    let house = House::new();
    house.ask(&["volume", "create", "data", "--size", "8M"]);
    let (uri, out) = (house.nbd("data"), house.text("data.csv.zst"));
    let mut record = house
        .command(&["trace", "record", "data", "--out", &out, "--for", "2s"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("a recorder");
    // Whenever the recorder begins, there is always a client at work until it ends.
    while record.try_wait().expect("asked").is_none() {
        tool("qemu-io", &["-f", "raw", "-c", "write 1M 64k", "-c", "read 0 32k", &uri]);
    }
    assert!(record.wait().expect("ended").success());
    let info = gnomon(&["--json", "trace", "info", &out]).json();
    assert!(info["reads"].as_u64() > Some(0) && info["writes"].as_u64() > Some(0), "{info}");
    assert_eq!(info["end_bytes"], (1 << 20) + (64 << 10), "{info}");
}

/// A volume at rest tells nothing, so nothing tells a recorder's end from its silence: it must not cost anything.
#[test]
fn recorders_that_left_an_idle_volume_leave_no_thread() {
    let house = House::new();
    house.ask(&["volume", "create", "data", "--size", "8M"]);
    let before = house.threads();
    for _ in 0..64 {
        drop(house.listen("/v1/volumes/data/trace"));
    }
    // The API's own threads for what blocks come and go; they are fewer than half as many as there were recorders.
    assert!(house.threads() < before + 32, "{before} threads have become {}", house.threads());
}

#[test]
fn a_recording_is_rewritten_without_change() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("a.csv"), generated()).expect("written");
    let before = gnomon(&["--json", "trace", "info", &path("a.csv")]).json();
    gnomon(&["--json", "trace", "convert", &path("a.csv"), "--out", &path("b.csv.zst")]).json();
    let after = gnomon(&["--json", "trace", "info", &path("b.csv.zst")]).json();
    for key in ["accesses", "reads", "writes", "touched_bytes", "end_bytes", "seconds"] {
        assert_eq!(before[key], after[key], "{key}");
    }
}

#[test]
fn a_replay_ranks_every_predictor_between_silence_and_oracle() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (file, svg) = (path("a.csv"), path("a.svg"));
    std::fs::write(&file, generated()).expect("written");
    let told = gnomon(&[
        "--json",
        "forecast",
        "replay",
        "--trace",
        &file,
        "--pull",
        "4x",
        "--allocated",
        "touched",
        "--plot",
        &svg,
    ])
    .json();
    let drawn = std::fs::read_to_string(&svg).expect("a picture");
    assert!(drawn.contains(">blend<") && drawn.contains("off in the mean") && told["calibration_error"].is_number());
    assert!(drawn.contains(">reads after the switch<") && !drawn.contains("no gap so far"), "{drawn}");
    let over_time = told["gap_over_time"].as_array().expect("points");
    let blend = told["results"].as_array().and_then(|rows| rows.iter().find(|row| row["predictor"] == "blend"));
    assert!((100..=288).contains(&over_time.len()), "{} points", over_time.len());
    assert_eq!(over_time.last().map(|last| &last["gap_closed"]), blend.map(|blend| &blend["gap_closed"]), "{told}");
    assert_eq!((&told["pull"], &told["allocated"]), (&"4x".into(), &"touched".into()), "{told}");
    let results = told["results"].as_array().expect("results");
    for key in ["stalled_pct", "gap_closed", "bytes_wasted", "ns_per_access"] {
        assert!(results.iter().all(|row| row[key].is_number()), "{key}: {told}");
    }
    let stalled = |name: &str| {
        let row = results.iter().find(|row| row["predictor"] == name).unwrap_or_else(|| panic!("no {name}: {told}"));
        row["stalled_pct"].as_f64().expect("a share")
    };
    for name in ["silence", "sequential", "blend"] {
        assert!(stalled("oracle") <= stalled(name), "{name}: {told}");
    }
    let dry =
        gnomon(&["--json", "vm", "move", "web", "--to", "b", "--dry-run", "--trace", &file, "--bandwidth", "50MB/s"]);
    assert!(dry.json()["results"].as_array().is_some_and(|rows| !rows.is_empty()));
}

/// Two streams and a hot spot, the same each time: 6,000 requests in 60 seconds.
fn generated() -> String {
    let mut text = String::from("t_us,op,offset,length\n");
    for n in 0..6_000u64 {
        let (op, block) = match n % 4 {
            0 => ('R', n * 4),
            1 => ('R', 60_000 - n * 2),
            2 => ('R', n * n % 97),
            _ => ('W', 30_000 + n % 512),
        };
        writeln!(text, "{},{op},{},16384", n * 10_000, block * 4096).expect("to memory");
    }
    text
}

/// The three commands of docs/forecasting.md, on a recording that a network can learn, and what is refused on the way.
#[test]
fn a_network_is_trained_and_tried_and_the_same_seed_gives_the_same_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("a.csv"), strided()).expect("written");
    let train = |out: &str, more: &[&str]| {
        let (trace, out) = (path("a.csv"), path(out));
        let words = ["--json", "forecast", "train", &trace, "--out", &out, "--hidden", "8", "--epochs", "60"];
        gnomon(&[&words[..], more].concat())
    };
    let told = train("one", &["--head", "50%"]).json();
    assert!(told["loss"].as_f64() < told["plain_loss"].as_f64(), "{told}");
    train("two", &["--head", "50%"]).json();
    let bytes = |name: &str| std::fs::read(path(name)).expect("a model");
    assert!(bytes("one") == bytes("two") && !std::path::Path::new(&path("one.training")).exists());
    train("all", &["--model", "lstm", "--seed", "2", "--resume"]).json();

    let replay = |model: &str| {
        gnomon(&["--json", "forecast", "replay", "--trace", &path("a.csv"), "--model", &path(model), "--pull", "4x"])
    };
    let (half, all) = (replay("one").json(), replay("all").json());
    assert_eq!((&half["model_saw_the_future"], &all["model_saw_the_future"]), (&false.into(), &true.into()));
    let network = |told: &serde_json::Value| {
        let rows = told["results"].as_array().expect("results");
        rows.iter()
            .filter_map(|row| row["predictor"].as_str())
            .find(|name| ["gru", "lstm"].contains(name))
            .map(str::to_owned)
    };
    assert_eq!((network(&half).as_deref(), network(&all).as_deref()), (Some("gru"), Some("lstm")));

    let svg = path("gap.svg");
    let told =
        gnomon(&["--json", "forecast", "compare", &path("a.csv"), "--boot", &path("a.csv"), "--plot", &svg]).json();
    assert_eq!(told["cases"].as_array().map(Vec::len), Some(4), "{told}");
    let drawn = std::fs::read_to_string(&svg).expect("a picture");
    assert_eq!(drawn.matches(">reads after the switch, %<").count(), 4, "{drawn}");

    std::fs::write(path("bad"), b"no model at all").expect("written");
    assert_ne!(replay("bad").code, 0);
    std::fs::write(path("one.training"), b"no training at all").expect("written");
    assert_ne!(train("one", &["--resume"]).code, 0);
}

/// A reader that leaps by a pattern of three steps: 4,000 reads.
fn strided() -> String {
    let mut text = String::from("t_us,op,offset,length\n");
    let mut unit = 0u64;
    for n in 0..4_000u64 {
        unit = (unit + [7, 90, 3][n as usize % 3]) % 60_000;
        writeln!(text, "{},R,{},4096", n * 10_000, unit * 65_536).expect("to memory");
    }
    text
}

/// What the daemon learns beside its work must not show in it; and a model that is none is told at the start, not later.
#[test]
fn a_daemon_that_learns_serves_as_ever_and_needs_a_model_that_is_one() {
    let mut house = House::unlit("a", "[forecast]\nlearn = true\n");
    house.start();
    house.ask(&["volume", "create", "data", "--size", "512M"]);
    let uri = house.nbd("data");
    // 6,000 reads of a pattern: enough for a first vocabulary and some lessons.
    let reads: Vec<String> =
        (0..6_000u64).map(|n| format!("read {} 4k", (n * 7 % 8_000) * 65_536 % (512 << 20))).collect();
    for some in reads.chunks(1_500) {
        let mut words = vec!["-f", "raw"];
        some.iter().for_each(|read| words.extend(["-c", read.as_str()]));
        words.push(&uri);
        tool("qemu-io", &words);
    }
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k", &uri]);

    let broken = House::unlit("b", "[forecast]\nmodel = '/dev/null'\n");
    let ended = broken.command(&["serve"]).output().expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("model"), "{said}");
}
