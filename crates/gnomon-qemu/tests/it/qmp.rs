//! The client against a real monitor.

use std::{os::fd::AsFd, time::Duration};

use gnomon_qemu::{CloseReason, EventError, Qmp, QmpError, Role, RunState, VmPaths};
use serde_json::json;

use crate::guests::{LONG, Stable, at_once, file_with, qemu};

#[test]
fn commands_answer_and_events_arrive_at_every_subscriber() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::BootPaused);
    let (one, two) = (vm.qmp().events(), vm.qmp().events());
    assert_eq!(vm.qmp().query_status().expect("answers").state, RunState::Prelaunch);
    vm.qmp().cont().expect("runs");
    for events in [&one, &two] {
        events.wait_for(LONG, |e| (e.name == "RESUME").then_some(())).expect("it runs");
    }
    vm.qmp().stop().expect("stops");
    one.wait_for(LONG, |e| (e.name == "STOP").then_some(())).expect("it stands");
    assert_eq!(vm.qmp().version().expect("told"), qemu().version);
    assert!(vm.qmp().current_machine().expect("told").starts_with("pc-q35-"));
}

#[test]
fn a_refusal_carries_qemus_words() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::BootPaused);
    let Err(QmpError::Refused { command, class, .. }) = vm.qmp().execute("no-such-command", json!({}), LONG) else {
        panic!("it was not refused")
    };
    assert_eq!((command.as_str(), class.as_str()), ("no-such-command", "CommandNotFound"));
}

#[test]
fn several_threads_get_their_own_answers() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::BootPaused);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let qmp = vm.qmp().clone();
            scope.spawn(move || {
                for n in 0..100 {
                    // Each command fails with its own name in the error.
                    let name = format!("nothing-{thread}-{n}");
                    let error = qmp.execute(&name, json!({}), LONG).expect_err("unknown").to_string();
                    assert!(error.contains(&name), "{error}");
                }
            });
        }
    });
}

#[test]
fn descriptors_are_passed_beside_commands() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::Boot);
    let file = file_with("hello");
    vm.qmp().getfd("note", file.as_fd()).expect("taken");
    vm.qmp().closefd("note").expect("it was there");
    assert!(vm.qmp().closefd("note").is_err(), "it can be there only once");
    vm.qmp().add_fd(7, file.as_fd()).expect("taken");
    let sets = || vm.qmp().execute("query-fdsets", json!({}), LONG).expect("answers");
    assert_eq!(sets()[0]["fdset-id"], json!(7));
    vm.qmp().remove_fd(7).expect("it was there");
    assert_eq!(sets(), json!([]));
}

#[test]
fn the_end_of_qemu_is_told_to_waiters_and_subscribers() {
    let stable = Stable::new();
    let vm = stable.launch("a", &stable.ticker(), Role::BootPaused);
    let events = vm.qmp().events();
    vm.stop(at_once()).expect("stopped");
    let end = loop {
        if let Err(end) = events.next(LONG) {
            break end;
        }
    };
    assert_eq!(end, EventError::Closed(CloseReason::Ended));
    let error = vm.qmp().query_status().expect_err("nobody is there");
    assert!(matches!(error, QmpError::Closed { reason: CloseReason::Ended, .. }), "{error}");
}

/// QEMU serves one client at a time; the second must not wait for ever.
#[test]
fn a_second_client_is_told_that_there_is_a_first() {
    let stable = Stable::new();
    let _vm = stable.launch("a", &stable.ticker(), Role::BootPaused);
    let path = VmPaths::new(&stable.home("a")).qmp();
    let socket = std::os::unix::net::UnixStream::connect(path).expect("the kernel accepts");
    let error = Qmp::over(socket, Duration::from_millis(50)).expect_err("no greeting");
    assert!(matches!(error, QmpError::NoGreeting { .. }), "{error}");
}
