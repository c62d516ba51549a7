//! Starting a holder: a process that is not bound to us.

use std::{
    ffi::OsString,
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::setsid;

use super::{HolderError, link::readable};

/// How long a new holder may take to listen. It does so within milliseconds; on a loaded host exec takes seconds.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How a holder is started and spoken to.
#[derive(Clone, Debug)]
pub struct HolderCommand {
    /// Its socket. The same one over all restarts of the daemon.
    pub socket: PathBuf,
    /// The program that runs [`super::hold`] with that socket.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// How long it may take to answer. One that takes longer is ended, and another one started.
    pub patience: Duration,
    /// How long it may be busy with an earlier daemon before the later one gives up.
    pub busy: Duration,
}

impl HolderCommand {
    /// `program args…` holds at `socket`; 10 s of patience, 20 s with an earlier daemon. The program writes a byte to its standard output when it
    /// listens, and nothing else.
    pub fn new(
        socket: impl Into<PathBuf>,
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> HolderCommand {
        HolderCommand {
            socket: socket.into(),
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            patience: Duration::from_secs(10),
            busy: Duration::from_secs(20),
        }
    }

    /// Starts it in a session of its own, and waits until it listens. When another one holds for the socket already,
    /// that one is as good: then the new one has ended, which is no error here.
    pub(super) fn start(&self) -> Result<Child, HolderError> {
        let failed = |why: String| HolderError::Start { program: self.program.clone(), why };
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // SAFETY: the closure runs in the child between fork and exec, and makes one system call.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
        // It says a byte, or it ends and its side of the pipe is closed: both can be read.
        let told = child.stdout.take().map(|out| readable(out.as_fd(), START_PATIENCE));
        match told {
            Some(Ok(true)) => Ok(child),
            Some(Ok(false)) | None => {
                // A process that says nothing would be in the way of the next.
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(format!("it did not listen within {START_PATIENCE:?}")))
            }
            Some(Err(e)) => Err(failed(e.to_string())),
        }
    }
}
