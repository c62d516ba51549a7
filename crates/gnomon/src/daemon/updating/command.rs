//! An update that is a command in the guest, such as an upgrade of its packages: run by the agent in the guest, under watch,
//! on the copy first and then in the guest itself.
//!
//! A switch of QEMU can be taken back; this cannot. The guest goes on serving others while its command runs and after,
//! and a state from before would not have what it told them since. So what went badly in the guest is told, and left.

use std::{
    fmt,
    time::{Duration, Instant},
};

use gnomon_machine::verdict::Sign;
use gnomon_qemu::{GuestAgent, GuestAgentError, GuestExit, Qemu};

use super::{
    Course, Update, against, report,
    watch::{Pulse, Watch},
};
use crate::{
    api::{
        ApiError,
        types::{CommandView, EventView, UpdateVerdict, UpdateVm},
    },
    daemon::jobs::Job,
};

/// How long the agent may take for one answer. An idle one takes milliseconds; a guest that installs packages on a host
/// without room takes seconds.
const ANSWER: Duration = Duration::from_secs(60);
/// How long one wait for it is: how soon other signs of the guest, and a wish to cancel, are seen.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is asked whether a command has ended. Nothing in the guest tells us by itself.
const ASK: Duration = Duration::from_millis(200);
/// The most of a command that is shown.
const SHOWN: usize = 120;

/// A command for the shell of a guest.
pub struct GuestCommand {
    words: String,
    patience: Duration,
}

/// What has come of a command.
#[derive(Default)]
pub struct Outcome {
    /// How it ended, if it did and that was told.
    pub view: Option<CommandView>,
    /// What was seen meanwhile; none of it good.
    pub signs: Vec<Sign>,
}

/// How a wait for a command was over.
enum Over {
    Ended(GuestExit),
    Hung,
    Ill(Vec<Sign>),
    Cancelled,
}

impl GuestCommand {
    /// The command that is asked for, if one is.
    pub fn of(ask: &UpdateVm) -> Result<Option<GuestCommand>, ApiError> {
        let Some(words) = ask.guest_exec.clone() else { return Ok(None) };
        if words.trim().is_empty() || words.contains('\0') {
            return Err(ApiError::usage("the command for the guest is empty, or holds a zero byte"));
        }
        let patience = Duration::try_from_secs_f64(ask.guest_exec_timeout);
        let patience = patience.map_err(|_| ApiError::usage("guest_exec_timeout is no number of seconds"))?;
        Ok(Some(GuestCommand { words, patience }))
    }

    /// Refuses a guest in which nobody would run it.
    pub fn check(&self, qemu: &Qemu) -> Result<(), ApiError> {
        let answered = GuestAgent::of(qemu, ANSWER).and_then(|mut agent| agent.ping());
        answered.map_err(|error| {
            let next = match &error {
                GuestAgentError::NoPort { .. } => {
                    "start it with `gnomon vm run --guest-agent`, and install qemu-guest-agent in the guest"
                }
                _ => "see in the guest that qemu-guest-agent is installed and runs",
            };
            ApiError::from(error).then(next)
        })
    }

    /// Runs it in the guest of `qemu`, until its end, the first hard sign, or a wish to cancel.
    pub fn run(&self, qemu: &Qemu, watch: &mut Watch, mut stop: impl FnMut() -> bool) -> Outcome {
        let began = Instant::now();
        match self.follow(qemu, watch, began, &mut stop) {
            Ok(Over::Ended(exit)) => Outcome::of(exit, began.elapsed()),
            Ok(Over::Hung) => Outcome { signs: vec![Sign::CommandHung], ..Outcome::default() },
            Ok(Over::Ill(signs)) => Outcome { signs, ..Outcome::default() },
            Ok(Over::Cancelled) => Outcome::default(),
            Err(error) => {
                // Why the agent fell silent is seen elsewhere, if anywhere.
                let mut signs = watch.until(Instant::now() + LOOK, &mut stop);
                signs.push(Sign::NoCommand { why: error.to_string() });
                Outcome { signs, ..Outcome::default() }
            }
        }
    }

    fn follow(
        &self,
        qemu: &Qemu,
        watch: &mut Watch,
        began: Instant,
        stop: &mut impl FnMut() -> bool,
    ) -> Result<Over, GuestAgentError> {
        let mut agent = GuestAgent::of(qemu, ANSWER)?;
        let process = agent.exec(&self.words)?;
        loop {
            if let Some(exit) = agent.status(process, LOOK)? {
                return Ok(Over::Ended(exit));
            }
            let signs = watch.until(Instant::now() + ASK, &mut *stop);
            if !signs.is_empty() {
                return Ok(Over::Ill(signs));
            }
            if stop() {
                return Ok(Over::Cancelled);
            }
            if began.elapsed() >= self.patience {
                return Ok(Over::Hung);
            }
        }
    }
}

impl fmt::Display for GuestCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.words.chars().take(SHOWN).collect();
        let more = if shown.len() < self.words.len() { "…" } else { "" };
        write!(f, "`{shown}{more}`")
    }
}

impl Outcome {
    fn of(exit: GuestExit, took: Duration) -> Outcome {
        let failed = (exit.code != Some(0)).then(|| Sign::CommandFailed { code: exit.code, said: exit.said.clone() });
        let view = CommandView { code: exit.code, said: exit.said, seconds: took.as_secs_f64() };
        Outcome { view: Some(view), signs: failed.into_iter().collect() }
    }
}

impl Update {
    /// Runs the command in the guest itself. That it begins is on record before it does: nothing undoes it.
    pub(super) fn carry_out(
        &self,
        command: &GuestCommand,
        job: &Job,
        course: &mut Course,
        pulse: Pulse,
    ) -> Result<(), ApiError> {
        report(job, "command", &format!("{command} runs in the guest"));
        let qemu = self.vm.qemu().ok_or_else(|| ApiError::refused("the VM does not run any more"))?;
        self.note(self.event("begun"));
        let mut watch = Watch::begin(&qemu, pulse);
        let outcome = command.run(&qemu, &mut watch, || job.is_cancelled());
        let reasons = against(&outcome.signs);
        course.command = outcome.view;
        let event = EventView { reasons, command: course.command.clone(), ..self.event("failed") };
        if event.reasons.is_empty() && event.command.is_some() {
            self.note(EventView { status: "done".to_string(), ..event });
            return Ok(());
        }
        let cancelled = ["cancelled while the command ran".to_string()];
        let reasons = if event.reasons.is_empty() { cancelled.to_vec() } else { event.reasons };
        self.note(EventView { reasons: reasons.clone(), ..event });
        let why = reasons.join("; ");
        Err(ApiError::refused(format!("the command did not go well in the guest itself: {why}"))
            .then("what it did there is not undone, and it may still run: look at the guest"))
    }

    /// The guest did not do well after its command.
    pub(super) fn tell_unwell(&self, course: &mut Course, reasons: &[String]) -> ApiError {
        course.verdict = Some(UpdateVerdict::Unwell);
        let command = course.command.clone();
        self.note(EventView { reasons: reasons.to_vec(), command, ..self.event("unwell") });
        ApiError::refused(format!(
            "the command was run in the guest, which is not well since: {}",
            reasons.join("; ")
        ))
        .then("what it did there is not undone: look at the guest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(command: &str, timeout: f64) -> UpdateVm {
        let ask = serde_json::json!({
            "guest_exec": command, "guest_exec_timeout": timeout, "probe_timeout": 1, "observe": 1, "approve": "auto",
        });
        serde_json::from_value(ask).expect("a request")
    }

    #[test]
    fn a_command_says_something_and_ends() {
        let table =
            [("true", 1.0, true), ("", 1.0, false), (" \n", 1.0, false), ("a\0b", 1.0, false), ("true", -1.0, false)];
        for (command, timeout, good) in table {
            assert_eq!(GuestCommand::of(&ask(command, timeout)).is_ok(), good, "{command:?} {timeout}");
        }
    }

    #[test]
    fn long_commands_are_shown_by_their_beginning() {
        let command = |words: &str| GuestCommand { words: words.to_string(), patience: Duration::ZERO }.to_string();
        assert_eq!(command("apt-get upgrade"), "`apt-get upgrade`");
        assert_eq!(command(&"é".repeat(SHOWN + 1)), format!("`{}…`", "é".repeat(SHOWN)));
    }

    #[test]
    fn only_an_exit_with_0_is_no_sign() {
        let signs = |code| Outcome::of(GuestExit { code, said: "ill".into() }, Duration::ZERO).signs;
        assert_eq!(signs(Some(0)), []);
        for code in [Some(7), None] {
            assert_eq!(signs(code), [Sign::CommandFailed { code, said: "ill".into() }]);
        }
    }
}
