//! `gnomon forecast train`: a network from recordings, in a file that says what it was trained on and how good it is.
//!
//! ```text
//!   TRACE… ──► paths of units ──► head: training, tail: held out ──► Trainer ──► OUT
//!                                                                     │ every few seconds and at each epoch's end
//!                                                                     ▼
//!                                                              OUT.training (goes when OUT is there)
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gnomon_forecast::{
    DEFAULT_BLOCKS_PER_UNIT,
    sequence::{About, Cell, Corpus, Model, Plan, Source, Trainer, path_of},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    super::{Context, Ended, Failure, output::facts},
    knowledge::{geometry_of, read_bounded},
    replay::thought,
};
use crate::{api::ApiError, files, trace};

/// The share of each recording that is kept to judge the network.
const HELD_OUT: f64 = 0.2;
/// Tokens of the vocabulary.
const TOKENS: usize = 128;
/// How often an unfinished training is written down.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// Updates between two looks at the clock: some 100 ms.
const UPDATES: usize = 100;

/// `gnomon forecast train`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recordings, in any format that `gnomon trace convert` reads
    #[arg(required = true)]
    traces: Vec<PathBuf>,
    /// The network's cell: gru or lstm
    #[arg(long, default_value = "gru", value_parser = cell)]
    model: Cell,
    /// The file to write
    #[arg(long)]
    out: PathBuf,
    /// Where the first weights come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Units of the network's state, 1 to 128
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=128))]
    hidden: u64,
    /// Epochs at most
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    epochs: u32,
    /// Use only so much of each recording, from its beginning: a replay switches at 50 %, and a model that has seen what
    /// comes after proves nothing
    #[arg(long, default_value = "100%", value_parser = super::replay::percent)]
    head: f64,
    /// Go on with a training that was interrupted
    #[arg(long)]
    resume: bool,
}

#[derive(Debug, Serialize)]
struct Trained {
    out: String,
    model: &'static str,
    traces: Vec<String>,
    tokens: usize,
    held_out: usize,
    epochs: usize,
    loss: f32,
    plain_loss: f32,
    right: f32,
    seconds: f64,
    tokens_per_cpu_s: f64,
    weights_bytes: usize,
}

/// `gnomon forecast train`
pub(super) fn run(args: &Args, context: &Context) -> Ended {
    let corpus = read(&args.traces, args.head / 100.0)?;
    if corpus.training.len() < 2 {
        return Err(Failure::usage("the recordings hold too few reads to learn from: record more of them"));
    }
    let kept = beside(&args.out);
    let mut trainer = begin(args, &corpus, &kept)?;
    let (begun, cpu) = (Instant::now(), thought());
    let before = trainer.curve().len();
    teach(&mut trainer, &corpus, &kept, !context.output.is_json())?;
    let cpu_s = (thought() - cpu) as f64 / 1e9;
    let model = model(args, &trainer, &corpus)?;
    replace(&args.out, &model.encode())?;
    match fs::remove_file(&kept) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(ApiError::from(error).into()),
        _ => {}
    }
    let epochs = trainer.curve().len();
    let told = Trained {
        out: args.out.display().to_string(),
        model: args.model.name(),
        traces: args.traces.iter().map(|file| file.display().to_string()).collect(),
        tokens: corpus.training.len(),
        held_out: corpus.held_out.len(),
        epochs,
        loss: model.about.loss,
        plain_loss: model.about.plain_loss,
        right: model.about.right,
        seconds: begun.elapsed().as_secs_f64(),
        tokens_per_cpu_s: (corpus.training.len() * (epochs - before)) as f64 / cpu_s.max(1e-9),
        weights_bytes: model.network.bytes(),
    };
    context.output.result(&told, words);
    Ok(())
}

fn read(files: &[PathBuf], head: f64) -> Result<Corpus, ApiError> {
    let mut paths = Vec::new();
    for file in files {
        let recorded = trace::load(file)?;
        let used = (recorded.accesses.len() as f64 * head) as usize;
        paths.push(path_of(geometry_of(&recorded)?, &recorded.accesses[..used]));
    }
    Ok(Corpus::of(&paths, TOKENS, HELD_OUT))
}

fn begin(args: &Args, corpus: &Corpus, kept: &Path) -> Result<Trainer, ApiError> {
    let hidden = usize::try_from(args.hidden).unwrap_or(usize::MAX);
    let plan = Plan { hidden, most_epochs: args.epochs, ..Plan::new(args.model, args.seed) };
    match args.resume && kept.exists() {
        true => Ok(Trainer::resume(plan, corpus, &read_bounded(kept)?)?),
        false => Ok(Trainer::new(plan, corpus)),
    }
}

/// Trains to the end, showing how far it is and keeping what an interruption would lose.
fn teach(trainer: &mut Trainer, corpus: &Corpus, kept: &Path, shown: bool) -> Result<(), ApiError> {
    let bar = if shown { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("[{bar:30}] {percent} %, at most {eta} left  {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut saved = Instant::now();
    loop {
        let progress = trainer.advance(corpus, UPDATES);
        bar.set_length(u64::from(trainer.plan().most_epochs) * progress.of as u64);
        bar.set_position(u64::from(progress.epochs) * progress.of as u64 + progress.updates as u64);
        if let Some(last) = trainer.curve().last() {
            let (epoch, loss, right) = (progress.epochs, last.held_out, last.right * 100.0);
            bar.set_message(format!("epoch {epoch}: loss {loss:.3} on what was kept, {right:.1} % foretold"));
        }
        if progress.over {
            bar.finish_and_clear();
            return Ok(());
        }
        if saved.elapsed() >= SAVE_EVERY {
            replace(kept, &trainer.checkpoint())?;
            saved = Instant::now();
        }
    }
}

fn model(args: &Args, trainer: &Trainer, corpus: &Corpus) -> Result<Model, ApiError> {
    let name = |file: &Path| file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let source =
        |file: &PathBuf| Ok(Source { name: name(file), digest: trace::digest(file)?, head: args.head / 100.0 });
    let traces: Result<Vec<Source>, ApiError> = args.traces.iter().map(source).collect();
    let best = trainer.best_epoch();
    let about = About {
        traces: traces?,
        curve: trainer.curve().to_vec(),
        loss: best.map_or(0.0, |epoch| epoch.held_out),
        plain_loss: corpus.plain_loss(),
        right: best.map_or(0.0, |epoch| epoch.right),
        seed: trainer.plan().seed,
    };
    Ok(Model {
        network: trainer.best().clone(),
        vocabulary: corpus.vocabulary.clone(),
        blocks_per_unit: DEFAULT_BLOCKS_PER_UNIT,
        about,
    })
}

/// The unfinished training of a file.
fn beside(out: &Path) -> PathBuf {
    files::with(out, ".training")
}

/// Writes a file whole or not at all.
fn replace(file: &Path, bytes: &[u8]) -> Result<(), ApiError> {
    files::replace(file, &[bytes]).map_err(|error| {
        ApiError::unavailable(format!("{} cannot be written: {error}", file.display()))
            .then("name another file with --out, or make room there")
    })
}

fn cell(text: &str) -> Result<Cell, String> {
    Cell::named(text).ok_or_else(|| format!("'{text}' is not a model: choose gru or lstm"))
}

fn words(told: &Trained) -> String {
    facts(&[
        ("model", format!("{} of {} bytes in {}", told.model, told.weights_bytes, told.out)),
        ("tokens", format!("{} learned from, {} kept to judge", told.tokens, told.held_out)),
        ("epochs", told.epochs.to_string()),
        ("loss", format!("{:.3} nats a token; {:.3} by counting alone", told.loss, told.plain_loss)),
        ("foretold", format!("{:.1} % of the next steps", told.right * 100.0)),
        ("time", format!("{:.1} s, {:.0} tokens a second of one processor", told.seconds, told.tokens_per_cpu_s)),
    ])
}
