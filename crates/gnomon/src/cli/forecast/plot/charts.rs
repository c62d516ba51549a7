//! The other charts: means as bars, cost against gain, and whether chances meant what they say.

use gnomon_forecast::{BINS, Reliability};

use super::{
    super::compare::Case,
    frame::{Axis, Frame, HELP},
    lines::is_drawn,
    svg::{Anchor, GREY, Pen, Place, Svg, width_of},
};
use crate::api::types::ForecastView;

const BAR: f64 = 16.0;
const GAP: f64 = 22.0;
/// Where bars begin, and how long the longest is.
const BARS: f64 = 120.0;
const LENGTH: f64 = 400.0;
/// Lines of text are so far apart.
const LINE: f64 = 14.0;
/// The radius of a predictor's dot, and the line from it to its name.
const DOT: f64 = 4.0;
const POINTER: Pen = Pen { colour: GREY, width: 0.6, dashes: "" };
/// The least and the most gain that is drawn.
const GAINS: (f64, f64) = (-0.2, 1.0);

/// A predictor's cost in nanoseconds an access, and its gain: the share of the gap that it closed.
pub type Point = (&'static str, f64, f64);

/// Whether chances meant what they say: what was stated, what came true of it, how many forecasts that were; and how far
/// they were off in the mean.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    bins: Vec<(f64, f64, u64)>,
    error: Option<f64>,
}

impl From<&Reliability> for Calibration {
    fn from(reliability: &Reliability) -> Calibration {
        let bin = |bin: &gnomon_forecast::Bin| bin.shares().map(|(stated, was)| (stated, was, u64::from(bin.ended)));
        Calibration { bins: reliability.bins.iter().filter_map(bin).collect(), error: reliability.error() }
    }
}

impl From<&ForecastView> for Calibration {
    fn from(view: &ForecastView) -> Calibration {
        let bins = view.calibration.iter().map(|bin| (bin.stated, bin.came_true, bin.ended));
        Calibration { bins: bins.collect(), error: view.calibration_error }
    }
}

/// A group of bars for each case, one bar for each predictor; how far down they reach. What is below address order has no
/// bar, and its number says by how much.
pub fn bars(svg: &mut Svg, cases: &[Case]) -> f64 {
    let mut y = GAP;
    for case in cases {
        svg.text(
            (8.0, y - 4.0),
            Anchor::Start,
            &format!("{}: share of the gap closed, mean of all recordings", case.case),
        );
        y += 8.0;
        for row in &case.rows {
            let length = row.mean.clamp(0.0, 1.0) * LENGTH;
            svg.text((BARS - 6.0, y + 6.0), Anchor::End, row.predictor);
            svg.bar((BARS, y), (length, BAR - 4.0), colour(row.predictor));
            svg.text((BARS + length + 6.0, y + 6.0), Anchor::Start, &format!("{:.3}", row.mean));
            y += BAR;
        }
        y += GAP;
    }
    y
}

/// Gain upwards, cost to the right by powers of ten from 10 ns to 10 us.
pub fn gains(svg: &mut Svg, frame: Frame, points: &[Point]) {
    let up = |gain: f64| (gain - GAINS.0) / (GAINS.1 - GAINS.0);
    let along = |nanos: f64| (nanos.max(10.0).log10() - 1.0) / 3.0;
    let across = [10.0, 100.0, 1000.0, 10_000.0].map(|nanos| (along(nanos), format!("{nanos}")));
    let gained = [GAINS.0, 0.0, 0.5, 1.0].map(|gain| (up(gain), format!("{gain:.1}")));
    frame.draw(
        svg,
        "What predictors gain, and what that costs",
        &Axis { name: "thought for each access, ns", ticks: across.to_vec() },
        &Axis { name: "share of the gap closed", ticks: gained.to_vec() },
    );
    svg.line(&[frame.place(0.0, up(0.0)), frame.place(1.0, up(0.0))], HELP);
    let weighed = points.iter().filter(|(name, ..)| is_drawn(name));
    let mut dots: Vec<(Place, &str)> =
        weighed.map(|(name, nanos, gain)| (frame.place(along(*nanos), up(*gain)), *name)).collect();
    dots.sort_by(|one, other| one.0.1.total_cmp(&other.0.1));
    for ((dot, name), label) in dots.iter().zip(beside(&dots, frame)) {
        svg.dot(*dot, DOT, colour(name));
        if label.1 != dot.1 {
            svg.line(&[*dot, (label.0 - 2.0, label.1)], POINTER);
        }
        svg.text(label, Anchor::Start, name);
    }
}

/// Where the words of dots stand: to the right of each, within the height of the frame, and so far above or below it that
/// none covers another, or a dot.
fn beside(dots: &[(Place, &str)], frame: Frame) -> Vec<Place> {
    let mut placed: Vec<(Place, f64)> = Vec::new();
    for ((x, y), words) in dots {
        let (x, wide) = (x + 3.0 * DOT, width_of(words));
        let is_free = |at: f64| {
            let over = |left: f64, width: f64, middle: f64, height: f64| {
                (at - middle).abs() < height && x <= left + width && left <= x + wide
            };
            placed.iter().all(|((left, middle), width)| !over(*left, *width, *middle, LINE))
                && dots.iter().all(|((left, middle), _)| !over(left - DOT, 2.0 * DOT, *middle, LINE / 2.0 + DOT))
        };
        let within = |at: f64| at.clamp(frame.at.1 + LINE / 2.0, frame.at.1 + frame.size.1 - LINE / 2.0);
        let steps = (0..=dots.len() * 4).flat_map(|step| [step as f64, -(step as f64)]);
        let free = steps.map(|step| within(y + step * LINE / 2.0)).find(|at| is_free(*at));
        placed.push(((x, free.unwrap_or(*y)), wide));
    }
    placed.into_iter().map(|(place, _)| place).collect()
}

/// What came true upwards, the chance that was given to the right; on the diagonal chances mean what they say. The larger
/// the dot, the more forecasts.
pub fn calibration(svg: &mut Svg, frame: Frame, told: &Calibration) {
    let title = match told.error {
        Some(error) => format!("Calibration: {error:.3} off in the mean"),
        None => "Calibration".to_string(),
    };
    let ticks: Vec<(f64, String)> = [0, BINS / 2, BINS]
        .map(|tenth| tenth as f64 / BINS as f64)
        .map(|share| (share, format!("{share:.1}")))
        .to_vec();
    let across = Axis { name: "chance that was given", ticks: ticks.clone() };
    frame.draw(svg, &title, &across, &Axis { name: "share that came true", ticks });
    if told.bins.is_empty() {
        return frame.say(svg, "no forecast has ended so far");
    }
    svg.line(&[frame.place(0.0, 0.0), frame.place(1.0, 1.0)], HELP);
    for (stated, was, ended) in &told.bins {
        svg.dot(frame.place(*stated, *was), 2.0 + (*ended as f64).max(1.0).log10(), colour("blend"));
    }
}

fn colour(predictor: &str) -> &'static str {
    match predictor {
        "blend" => "#c2410c",
        "oracle" => "#94a3b8",
        _ => "#475569",
    }
}
