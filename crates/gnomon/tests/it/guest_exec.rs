//! An update that is a command in the guest, by the agent of a real Debian: tried on a copy, run in the guest, refused,
//! and told of where it cannot be undone.

use serde_json::Value;

use crate::{
    beating::{Beating, FIRST},
    house::tool,
    updates::{await_end, await_phase},
};

fn update(guest: &Beating, what: &[&str]) -> (i32, String) {
    let ran = guest.house.run(&[&["vm", "update", "tiny"], what].concat());
    (ran.code, format!("{}{}", ran.out, ran.err))
}

/// Each event's status, and how its command ended.
fn events(guest: &Beating) -> Vec<(String, Value)> {
    let events = guest.house.ask(&["vm", "events", "tiny"]);
    let told = |event: &Value| (event["status"].as_str().expect("a word").to_string(), event["command"].clone());
    events.as_array().expect("a list").iter().map(told).collect()
}

#[test]
fn a_command_that_went_well_on_the_copy_is_run_in_the_guest() {
    let guest = Beating::boot(&[]);
    let log = guest.console_log().display().to_string();
    // The copy says what its disk has by now, and the guest itself still says what it had.
    let probe = format!(
        "for i in $(seq 600); do grep -q 'of two' \"$GNOMON_CONSOLE\" && break; sleep 0.1; done\n\
         grep -q 'of two' \"$GNOMON_CONSOLE\" && ! grep -q 'of two' {log}"
    );
    let command = "echo two >/dev/vda && sync && echo changed";
    let dry = guest.house.ask(&["vm", "update", "tiny", "--guest-exec", command, "--dry-run"]);
    assert_eq!((&dry["kind"], &dry["earlier"]["updates"]), (&Value::from("guest-exec"), &Value::from(0)), "{dry}");
    let (code, said) =
        update(&guest, &["--guest-exec", command, "--probe", &probe, "--probe-timeout", "120", "--observe", "0.5"]);
    assert_eq!(code, 0, "{said}");
    guest.goes_on("two");
    assert_eq!(guest.on_disk(), "two");
    guest.runs_once();
    let events = events(&guest);
    let (statuses, commands): (Vec<_>, Vec<_>) = events.into_iter().unzip();
    assert_eq!(statuses, ["begun", "done"]);
    assert_eq!((&commands[1]["code"], &commands[1]["said"]), (&Value::from(0), &Value::from("changed")));
    let dry = guest.house.ask(&["vm", "update", "tiny", "--guest-exec", command, "--dry-run"]);
    let last = &dry["history"][0];
    assert_eq!((&last["kind"], &last["verdict"]), (&Value::from("guest-exec"), &Value::from("done")), "{dry}");
}

#[test]
fn a_command_that_goes_badly_on_the_copy_is_never_run_in_the_guest() {
    let guest = Beating::boot(&[]);
    let much = "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 3";
    let table: [(&[&str], &str); 5] = [
        (&["echo two >/dev/vda; sync; echo it broke; exit 7"], "ended with 7: it broke"),
        (&["echo two >/dev/vda; sync", "--probe", "exit 9"], "the probe ended with 9"),
        (&["echo two >/dev/vda; sync; echo c >/proc/sysrq-trigger"], "panic"),
        (&["sleep 1000000", "--guest-exec-timeout", "1"], "did not come to an end in time"),
        (&[much], "the end"),
    ];
    for (what, why) in table {
        let (code, said) = update(&guest, &[&["--observe", "0", "--guest-exec"], what].concat());
        assert!(code == 3 && said.contains(why), "{what:?}: {code}: {said}");
        // What is told of a command that says much is its end.
        assert!(said.len() < 16 << 10, "{}", said.len());
        guest.runs_once();
    }
    guest.goes_on(FIRST);
    assert_eq!(guest.on_disk(), FIRST);
    let events = events(&guest);
    assert!(events.len() == table.len() && events.iter().all(|(status, _)| status == "refused"), "{events:?}");
    assert_eq!(events[0].1["code"], 7);
}

#[test]
fn what_goes_badly_in_the_guest_itself_is_told_and_not_undone() {
    let guest = Beating::boot(&[]);
    let (code, said) = update(&guest, &["--untried", "--guest-exec", "echo two >/dev/vda; sync; exit 7"]);
    assert!(code == 3 && said.contains("not undone") && said.contains("ended with 7"), "{code}: {said}");
    guest.goes_on("two");
    let begin = ["vm", "update", "tiny", "--untried", "--guest-exec", "true", "--observe", "600", "--detach"];
    let job = guest.house.ask(&begin);
    await_phase(&guest.house, "watch");
    let (code, said) = update(&guest, &["--guest-exec", "true"]);
    assert!(code == 3 && said.contains("being updated already"), "{code}: {said}");
    let pid = guest.show()["pid"].as_u64().expect("a process").to_string();
    tool("kill", &["-KILL", &pid]);
    let ended = await_end(&guest.house, job["id"].as_str().expect("an id"));
    let why = ended["error"]["message"].as_str().expect("a reason");
    assert!(ended["state"] == "failed" && why.contains("its QEMU ended"), "{ended}");
    let statuses: Vec<String> = events(&guest).into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses, ["begun", "failed", "begun", "done", "unwell"]);
}
