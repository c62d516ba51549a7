//! `forecast show`: what is expected of a volume, why, and how good it was. Times are seconds, chances 0 to 1.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Entries of each list unless asked for otherwise, and at most.
pub const TOP: (u32, u32) = (10, 256);

/// How much to tell.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
pub struct ForecastQuery {
    /// Entries of each list: 10 unless told, 256 at most.
    #[serde(default)]
    pub top: Option<u32>,
}

/// What a volume's loop expects, why, and how good it was.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ForecastView {
    /// The volume.
    pub volume: String,
    /// What it is here.
    pub role: String,
    /// The node where its move began and whose loop forecasts it until its end, when that is another one: ask there.
    #[serde(default)]
    pub ask_node: Option<String>,
    /// Accesses that were learned from since the daemon started; with none, nothing is known yet.
    pub accesses: u64,
    /// Whether it began with what was learned before: by an earlier daemon, or of another volume.
    pub before: bool,
    /// The volume with what that had learned it began: one of the same trust group, or one that was named when it was made.
    #[serde(default)]
    pub like: Option<String>,
    /// The chance below which a forecast is not acted on.
    pub threshold: f32,
    /// How far ahead forecasts look.
    pub horizon_s: f64,
    /// All who are asked, and how much each counts.
    pub experts: Vec<ExpertView>,
    /// Forecasts that ended, by tenths of the chance that they were given: whether chances mean what they say.
    #[serde(default)]
    pub calibration: Vec<BinView>,
    /// How far these chances are off in the mean; nothing before any forecast ended.
    #[serde(default)]
    pub calibration_error: Option<f64>,
    /// The last reads, the latest first: what the forecasts come from.
    pub reads: Vec<ReadView>,
    /// What is expected to be read soon: forecasts that no read has made true, those still out before those run out, and
    /// what a move would act on before what it would not.
    pub expected: Vec<ExpectedView>,
    /// What goes first in the move that is on, or in one that began now.
    pub first: Vec<FirstView>,
    /// The move that is on; nothing when there is none.
    pub moving: Option<MovingView>,
    /// How much of the gap was closed so far, over the reads after the switch, oldest first and 288 points at most: of the
    /// move that is on once its guest has read, or of the last one that ended here since the daemon started.
    #[serde(default)]
    pub gap_over_time: Vec<GapView>,
}

/// A moment after a switch: what was felt so far, and what would have been.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GapView {
    /// Reads since the switch.
    pub reads: u64,
    /// Seconds since the first of them.
    pub seconds: f64,
    /// Of these reads, those that waited.
    pub stalls: u64,
    /// Those that would have waited had as many bytes been carried in address order.
    pub stalls_sequential: u64,
    /// The same had the future been known.
    pub stalls_oracle: u64,
    /// The share of the way from the one to the other; nothing while they are the same, below 0 worse than address order.
    pub gap_closed: Option<f64>,
}

/// Forecasts that were given about the same chance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BinView {
    /// The mean chance that they were given.
    pub stated: f64,
    /// The share of them that came true.
    pub came_true: f64,
    /// How many ended.
    pub ended: u64,
}

/// An expert and its standing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ExpertView {
    /// Those it stands with: background, reactive or sequence.
    pub clock: String,
    /// Its name.
    pub expert: String,
    /// Its share of that clock's weights.
    pub weight: f32,
    /// What its forecasts were worth; nothing for those who order and do not foretell.
    pub worth: Option<WorthView>,
}

/// What an expert's forecasts were worth lately.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct WorthView {
    /// Forecasts that ended.
    pub ended: u64,
    /// The share of them that came true in time.
    pub precision: f32,
    /// The share of the reads of lacking units that it foretold.
    pub coverage: f32,
    /// The mean time from forecast to read.
    pub lead_s: f64,
    /// Bytes of forecasts that did not come true, acted on or not.
    pub wasted: u64,
    /// Bytes of memory it takes, where they are counted by expert.
    pub state: u64,
}

/// A read.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ReadView {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length, in whole blocks of 4 KiB.
    pub bytes: u64,
    /// How long ago.
    pub ago_s: f64,
}

/// A forecast of one unit.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ExpectedView {
    /// Where the unit begins, in bytes.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// Who named it.
    pub expert: String,
    /// The share of forecasts like this one that came true.
    pub chance: f32,
    /// Whether a move would act on it while its link has room.
    pub is_heard: bool,
    /// How long ago it was made.
    pub made_s: f64,
    /// How long it still has to come true; nothing when it has run out.
    pub left_s: Option<f64>,
}

/// A unit at the head of the order of a move.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct FirstView {
    /// Where the unit begins, in bytes.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// Who speaks most for it; `sequential` is the order of addresses.
    pub expert: String,
    /// How likely it is to be read; nothing before enough accesses were counted.
    pub chance: Option<f32>,
    /// How often it was read.
    pub reads: u64,
    /// How often it was written or discarded.
    pub writes: u64,
    /// How long ago it was read last; nothing if never.
    pub last_read_s: Option<f64>,
    /// How long ago it was written last; nothing if never.
    pub last_write_s: Option<f64>,
}

/// What the forecasts of a move were worth so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MovingView {
    /// Its job, unless that has ended.
    pub job: Option<String>,
    /// Whether the guest runs at the destination already.
    pub switched: bool,
    /// Bytes the destination lacks.
    pub lacking: u64,
    /// Bytes on their way.
    pub in_flight: u64,
    /// Reads after the switch that found all they needed.
    pub hits: u64,
    /// Reads after the switch that had to wait.
    pub stalls: u64,
    /// Of these, those whose unit was on its way already.
    pub late: u64,
    /// The share of the reads after the switch that had to wait.
    pub stalled_share: f64,
    /// How many reads would have waited so far had as many bytes been carried in address order; nothing before the first
    /// read after the switch, and where telling it would take long.
    #[serde(default)]
    pub stalls_sequential: Option<u64>,
    /// The same had the future been known.
    #[serde(default)]
    pub stalls_oracle: Option<u64>,
    /// The share of the way from the one to the other; nothing when there is none.
    #[serde(default)]
    pub gap_closed: Option<f64>,
    /// Bytes that crossed the link.
    pub moved: u64,
    /// Of these, bytes that were replaced before a read found them.
    pub wasted: u64,
    /// Copies given up for better ones.
    pub dropped: u64,
    /// Parts that failed and were asked for again.
    pub failed: u64,
}

/// How a feed does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeedState {
    /// Nothing was fetched yet.
    #[default]
    Pending,
    /// Its last text came and is understood.
    Current,
    /// The last fetch brought nothing; what was said before holds until it is too old.
    Late,
    /// The last text is wrong: nothing is known until a good one comes.
    Wrong,
}

impl FeedState {
    /// As a word.
    pub fn name(self) -> &'static str {
        match self {
            FeedState::Pending => "pending",
            FeedState::Current => "current",
            FeedState::Late => "late",
            FeedState::Wrong => "wrong",
        }
    }
}

/// What the world outside says.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct FeedView {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: String,
    /// How it does.
    pub state: FeedState,
    /// What it says of now; nothing when that is unknown.
    pub value: Option<String>,
    /// How old that is.
    pub age_s: Option<f64>,
    /// How long ago a good text came.
    pub came_s: Option<f64>,
    /// Why it is late or wrong.
    pub why: Option<String>,
}
