//! Injection into programs that were not written for it: what they do must not change.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::*;

const SYS_GETPID: u64 = 39;
const SYS_CLOSE: u64 = 3;
const EBADF: i32 = 9;

/// A program that is ended with its test.
struct Victim {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Victim {
    fn start(program: &str, args: &[&str]) -> Victim {
        let mut command = Command::new(program);
        let mut child =
            command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program is there");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Victim { child, out }
    }

    /// A program that repeats what it hears, and has started: before that its libraries are not mapped yet, and with
    /// them the room for a stub.
    fn echo() -> Victim {
        let mut cat = Victim::start("cat", &[]);
        cat.say("ready");
        assert_eq!(cat.line(), "ready");
        cat
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn maps(&self) -> String {
        fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("it lives")
    }

    fn inject<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session) -> Result<T, InjectError> + Send + 'static,
    ) -> Result<T, InjectError> {
        inject(self.pid(), &self.maps(), work)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("it speaks");
        line.trim().to_string()
    }

    fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("it listens");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).expect("a process"), signal).expect("it lives");
    }

    /// The letter that says what its first thread does.
    fn state(&self) -> String {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it lives");
        stat.rsplit_once(')').map(|(_, rest)| rest.trim()[..1].to_string()).expect("a state")
    }

    fn ended_well(mut self) -> bool {
        drop(self.child.stdin.take());
        self.child.wait().expect("ours").success()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own_number(session: &mut Session) -> Result<Result<u64, i32>, InjectError> {
    session.call(SYS_GETPID, [0; 3])
}

#[test]
fn a_program_that_waits_makes_calls_and_waits_on() {
    let mut cat = Victim::echo();
    let wanted = cat.pid() as u64;
    for round in 0..50 {
        let told = cat.inject(|session| {
            Ok((own_number(session)?, session.call(SYS_CLOSE, [u64::MAX, 0, 0])?, own_number(session)?))
        });
        assert_eq!(told.expect("injected"), (Ok(wanted), Err(EBADF), Ok(wanted)));
        cat.say(&format!("line {round}"));
        assert_eq!(cat.line(), format!("line {round}"));
    }
    assert!(cat.ended_well());
}

/// Every instruction of the shell is a place to be stopped at.
#[test]
fn a_program_that_computes_computes_the_same() {
    let mut shell = Victim::start(
        "sh",
        &["-c", "echo ready; i=0; s=0; while [ $i -lt 300000 ]; do i=$((i+1)); s=$(((s*31+i)%65521)); done; echo $s"],
    );
    assert_eq!(shell.line(), "ready");
    let mut calls = 0;
    while shell.inject(own_number).is_ok() && calls < 500 {
        calls += 1;
    }
    let expected = (1..=300_000u64).fold(0, |s, i| (s * 31 + i) % 65521);
    assert_eq!(shell.line(), expected.to_string());
    assert!(calls > 10 && shell.ended_well(), "{calls}");
}

/// A sleep is resumed by a call of its own, which knows how much is left.
#[test]
fn a_sleep_is_not_cut_short() {
    let program = "import time\nprint('ready', flush=True)\nstart = time.monotonic()\ntime.sleep(0.5)\n\
                   print(time.monotonic() - start >= 0.5, flush=True)";
    let mut sleep = Victim::start("python3", &["-c", program]);
    assert_eq!(sleep.line(), "ready");
    for _ in 0..20 {
        sleep.inject(own_number).expect("injected").expect("has a number");
    }
    assert_eq!(sleep.line(), "True");
    assert!(sleep.ended_well());
}

#[test]
fn signals_that_come_meanwhile_are_delivered_after() {
    let program = "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('got', flush=True))\n\
                   print('ready', flush=True)\nwhile True: signal.pause()";
    let mut python = Victim::start("python3", &["-c", program]);
    assert_eq!(python.line(), "ready");
    for _ in 0..20 {
        let pid = Pid::from_raw(python.pid()).expect("a process");
        let told = python.inject(move |session| {
            own_number(session)?.expect("has a number");
            kill_process(pid, Signal::USR1).expect("it lives");
            own_number(session)
        });
        assert_eq!(told.expect("injected"), Ok(python.pid() as u64));
        assert_eq!(python.line(), "got");
    }
}

#[test]
fn a_stop_that_comes_meanwhile_stops_it_after() {
    let mut cat = Victim::echo();
    let pid = Pid::from_raw(cat.pid()).expect("a process");
    let told = cat.inject(move |session| {
        kill_process(pid, Signal::STOP).expect("it lives");
        own_number(session)
    });
    assert_eq!(told.expect("injected"), Ok(cat.pid() as u64));
    // The kernel stops it as soon as it is scheduled; a further attempt is told so, and does not make it run.
    let stopped = rustix::process::waitid(rustix::process::WaitId::Pid(pid), rustix::process::WaitIdOptions::STOPPED);
    assert!(stopped.expect("ours").is_some_and(|status| status.stopped()));
    let error = cat.inject(own_number).expect_err("it is stopped");
    assert!(matches!(error, InjectError::Standing), "{error}");
    // Let go, it falls back into its stop, of which the kernel tells nobody a second time.
    while cat.state() != "T" {
        thread::yield_now();
    }
    cat.signal(Signal::CONT);
    cat.say("on");
    assert_eq!(cat.line(), "on");
    assert!(cat.ended_well());
}

/// This process dies between two steps of an injection: the stub alone takes the program back.
#[test]
fn the_death_of_the_injector_does_no_harm() {
    const VICTIM: &str = "GNOMON_TEST_VICTIM";
    if let Ok(words) = env::var(VICTIM) {
        let (pid, calls) = words.split_once(' ').expect("two words");
        let (pid, calls): (i32, u32) = (pid.parse().expect("a number"), calls.parse().expect("a number"));
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
        let _ = inject(pid, &maps, move |session| {
            for _ in 0..calls {
                let _ = own_number(session)?;
            }
            session.put(&[1, 2, 3])?;
            kill_process(rustix::process::getpid(), Signal::KILL).expect("ourselves");
            Ok(())
        });
        unreachable!("killed");
    }
    let program = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print(line.strip(), flush=True)";
    let mut python = Victim::start("python3", &["-c", program]);
    assert_eq!(python.line(), "ready");
    for calls in [0, 1, 2, 7] {
        let status = Command::new(env::current_exe().expect("ourselves"))
            .args(["--exact", "dirty::inject::tests::the_death_of_the_injector_does_no_harm", "--nocapture"])
            .env(VICTIM, format!("{} {calls}", python.pid()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("run");
        assert!(!status.success(), "it was to die");
        python.say(&format!("after {calls}"));
        assert_eq!(python.line(), format!("after {calls}"));
        let status = fs::read_to_string(format!("/proc/{}/status", python.pid())).expect("it lives");
        assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    }
    // And it can be done again, properly.
    assert_eq!(python.inject(own_number).expect("injected"), Ok(python.pid() as u64));
    assert!(python.ended_well());
}

/// What the work itself says goes wrong, goes wrong; the program does not.
#[test]
fn a_failure_in_the_middle_leaves_no_trace() {
    let mut cat = Victim::echo();
    let stack = stack_of(&cat);
    let error = cat.inject(|session| {
        own_number(session)?.expect("has a number");
        Err::<(), _>(InjectError::NoRoom)
    });
    assert!(matches!(error, Err(InjectError::NoRoom)));
    assert!(stack == stack_of(&cat), "its stack has changed");
    cat.say("on");
    assert_eq!(cat.line(), "on");
}

/// All of a program's stack, once it waits.
fn stack_of(victim: &Victim) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    while victim.state() != "S" {
        thread::yield_now();
    }
    let maps = victim.maps();
    let stack = crate::dirty::maps::mappings(&maps).find(|m| m.path == "[stack]").expect("a stack").at;
    let mut bytes = vec![0; (stack.end - stack.start) as usize];
    let memory = File::open(format!("/proc/{}/mem", victim.pid())).expect("ours");
    memory.read_exact_at(&mut bytes, stack.start).expect("mapped");
    bytes
}

#[test]
fn a_process_that_is_not_there_is_told() {
    let mut gone = Victim::start("true", &[]);
    let maps = gone.maps();
    gone.child.wait().expect("ours");
    for pid in [gone.pid(), 0, -1] {
        let error = inject(pid, &maps, own_number).expect_err("nobody");
        assert!(matches!(error, InjectError::Ended), "{error}");
    }
    // Nobody may trace the first process but the first user, and no process itself.
    let own = inject(std::process::id() as i32, &maps, own_number).expect_err("ourselves");
    assert!(matches!(own, InjectError::Attach { .. }), "{own}");
}
