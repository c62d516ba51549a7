//! `gnomon job`: long work under way.

use clap::Subcommand;

use super::{
    Context, Ended,
    output::{facts, table},
    verified,
};
use crate::{
    api::{
        ApiError, Kind,
        types::{JobState, JobView},
    },
    progress::Reporter,
};

/// `gnomon job`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List jobs, oldest first
    #[command(after_help = "Examples:\n  gnomon job ls\n  gnomon job ls --json")]
    Ls,
    /// Show one job
    #[command(after_help = "Examples:\n  gnomon job show j1-3")]
    Show {
        /// The job's id
        id: String,
    },
    /// Follow a job until it is over; ends with the exit code the job deserves
    #[command(after_help = "Examples:\n  gnomon vm move web --to node-b --detach\n  gnomon job watch j1-3")]
    Watch {
        /// The job's id
        id: String,
    },
    /// Wish a job to end early
    #[command(after_help = "Examples:\n  gnomon job cancel j1-3")]
    Cancel {
        /// The job's id
        id: String,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> Ended {
    match command {
        Command::Ls => {
            let jobs: Vec<JobView> = context.client.get("/v1/jobs").await?;
            context.output.result(&jobs, |jobs| list(jobs));
        }
        Command::Show { id } => {
            let job: JobView = context.client.get(&format!("/v1/jobs/{id}")).await?;
            context.output.result(&job, words);
        }
        Command::Watch { id } => follow(&id, context).await?,
        Command::Cancel { id } => {
            let job: JobView = context.client.post(&format!("/v1/jobs/{id}/cancel"), &()).await?;
            context.output.result(&job, words);
        }
    }
    Ok(())
}

/// Follows a job to its end; its failure is the command's.
pub async fn follow(id: &str, context: &Context) -> Ended {
    let mut reporter: Reporter = context.output.reporter();
    let view = context.client.follow(id, |view| reporter.show(view)).await?;
    match (view.state, view.error.clone()) {
        (JobState::Done, _) => match verified::of(&view) {
            Some(found) => {
                context.output.result(&view, |_| verified::words(&found));
                verified::verdict(&found)?;
            }
            None => context.output.job(&view),
        },
        (_, Some(error)) => return Err(error.into()),
        (_, None) => return Err(ApiError::new(Kind::Unavailable, format!("job {id} ended without a word")).into()),
    }
    Ok(())
}

/// Follows a job, or with `detach` only says its id.
pub async fn follow_or_detach(job: &JobView, detach: bool, context: &Context) -> Ended {
    match detach {
        true => context.output.result(job, |job| format!("{} started: `gnomon job watch {}`", job.kind, job.id)),
        false => follow(&job.id, context).await?,
    }
    Ok(())
}

/// Cancels what `path` names and waits until it is undone, which is what was asked for. A job that comes to another end
/// all the same has the exit code that it deserves.
pub async fn cancel(path: &str, context: &Context) -> Ended {
    let job: JobView = context.client.post(path, &()).await?;
    let mut reporter: Reporter = context.output.reporter();
    let view = context.client.follow(&job.id, |view| reporter.show(view)).await?;
    match (view.state, view.error.clone()) {
        (JobState::Failed, Some(error)) => return Err(error.into()),
        (JobState::Done, _) => {
            let late = ApiError::refused(format!(
                "the {} of {} was done before it could be cancelled",
                view.kind, view.subject
            ));
            return Err(late.into());
        }
        _ => context.output.result(&view, |view| {
            format!("the {} of {} was cancelled: nothing has changed", view.kind, view.subject)
        }),
    }
    Ok(())
}

fn list(jobs: &[JobView]) -> String {
    let rows: Vec<[String; 5]> = jobs
        .iter()
        .map(|job| {
            let state = format!("{:?}", job.state).to_lowercase();
            [job.id.clone(), job.kind.clone(), job.subject.clone(), state, job.progress.phase.clone()]
        })
        .collect();
    table(["ID", "KIND", "SUBJECT", "STATE", "PHASE"], &rows)
}

fn words(job: &JobView) -> String {
    facts(&[
        ("id", job.id.clone()),
        ("kind", job.kind.clone()),
        ("subject", job.subject.clone()),
        ("state", format!("{:?}", job.state).to_lowercase()),
        ("phase", job.progress.phase.clone()),
        ("done", format!("{} of {} bytes", job.progress.done_bytes, job.progress.total_bytes)),
        ("message", job.progress.message.clone()),
        ("error", job.error.as_ref().map(ToString::to_string).unwrap_or_default()),
    ])
}
