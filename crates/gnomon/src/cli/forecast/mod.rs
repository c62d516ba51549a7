//! `gnomon forecast`: what is expected and why, what the predictors would have been worth, and models that are trained
//! to be worth more.

mod compare;
mod feeds;
mod knowledge;
mod plot;
mod replay;
mod show;
mod train;

use clap::Subcommand;

use super::{Context, Ended};
pub use replay::dry_run;

/// `gnomon forecast`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what is expected of a volume, why, and how good the forecasts were; also while it moves
    #[command(after_help = "Examples:\n  gnomon forecast show web\n  gnomon forecast show root --top 40 --json\n  \
                            gnomon forecast show root --plot root.svg\n\n\
                            weight: an expert's share among those of its clock. true: the share of its forecasts that\n\
                            came true in time. chance: of forecasts like this one, the share that came true.\n\
                            What a move does not act on is told as well.")]
    Show(show::Args),
    /// Say what the world outside says (weather, events: `[[feed]]` in the configuration), and whether it can be believed
    #[command(after_help = "Examples:\n  gnomon forecast feeds\n\n\
                            late: the last text holds until it is too old. wrong: unknown until a good one comes.")]
    Feeds,
    /// Replay a recording through the real loop and compare every predictor with address order and the oracle
    #[command(after_help = "Examples:\n  gnomon forecast replay web.csv.zst\n  \
                            gnomon forecast replay web.csv.zst --model web.safetensors\n  \
                            gnomon forecast replay disk.vscsi --budget 10% --pull 4x --allocated touched --json\n\n\
                            stalled: share of the reads after the switch that would have waited.\n\
                            gap closed: 0 is address order, 1 is the oracle, which has seen the future.")]
    Replay(replay::Args),
    /// Train a network on the order of reads in recordings; each one's last fifth is kept to judge it
    #[command(after_help = "Examples:\n  gnomon forecast train web.csv.zst --out web.safetensors\n  \
                            gnomon forecast train a.csv.zst b.vscsi --model lstm --seed 7 --out both.safetensors\n  \
                            gnomon forecast train web.csv.zst --out web.safetensors --resume\n\n\
                            loss: nats a token on what was kept; 'plain' is what counting tokens alone has.\n\
                            The same recordings and the same seed give the same file.")]
    Train(train::Args),
    /// One table of several recordings: every expert, the blend and the oracle, at two rates and two allocations
    #[command(after_help = "Examples:\n  gnomon forecast compare web.csv.zst disk.vscsi\n  \
                            gnomon forecast compare *.csv.zst --model web.safetensors --plot gap.svg --json")]
    Compare(compare::Args),
}

/// Carries a command out.
pub(super) async fn run(command: Command, context: &Context) -> Ended {
    match command {
        Command::Show(args) => show::run(&args, context).await,
        Command::Feeds => feeds::run(context).await,
        Command::Replay(args) => replay::run(&args, context),
        Command::Train(args) => train::run(&args, context),
        Command::Compare(args) => compare::run(&args, context),
    }
}
