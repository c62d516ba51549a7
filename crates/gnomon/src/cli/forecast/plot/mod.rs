//! Pictures of forecasts as SVG: what each predictor gained, what that cost, how the gap was closed over time, and whether
//! chances meant what they say.
//!
//! ```text
//!   mod.rs     which charts a picture has, and where
//!   charts.rs  bars, cost against gain, calibration        lines.rs  the gap over time
//!   frame.rs   edges and axes of a chart                   svg.rs    marks, as text
//! ```

mod charts;
mod frame;
mod lines;
mod svg;

use gnomon_cycle::GapPoint;

pub(super) use self::{
    charts::{Calibration, Point},
    lines::{Line, is_drawn, mean, of_move},
};
use self::{
    frame::{BOTTOM, Frame, LEFT, SIDE, TOP},
    svg::{Anchor, Svg},
};
use super::compare::Case;
use crate::api::types::{ForecastView, GapView};

/// What is left to the right of a chart for the names of its dots, or a legend.
const NAMES: f64 = 128.0;
/// Where the second chart of a row begins, and where a legend does.
const SECOND: f64 = LEFT + SIDE + NAMES + LEFT;
const LEGEND: f64 = SECOND + SIDE + 20.0;
const WIDTH: f64 = LEGEND + NAMES;
/// How high a row of charts is.
const ROW: f64 = TOP + SIDE + BOTTOM;

/// Means of a comparison as bars; below them cost against gain and calibration, and the gap over time in each case.
pub(super) fn compared(cases: &[Case], points: &[Point], calibration: &Calibration) -> String {
    let mut svg = Svg::default();
    let top = charts::bars(&mut svg, cases);
    charts::gains(&mut svg, first(top), points);
    charts::calibration(&mut svg, second(top), calibration);
    for (nth, case) in cases.iter().enumerate() {
        let top = top + ROW * (1 + nth / 2) as f64;
        let frame = if nth % 2 == 0 { first(top) } else { second(top) };
        let across = ("reads after the switch, %", (|percent| format!("{percent:.0}")) as fn(f64) -> String);
        lines::draw(&mut svg, frame, &format!("{}: the gap over time, mean", case.case), across, &case.lines);
    }
    let lines = cases.first().map_or(&[][..], |case| &case.lines);
    lines::legend(&mut svg, (LEGEND, top + ROW + TOP + 8.0), lines);
    svg.picture(WIDTH, top + ROW * (1 + cases.len().div_ceil(2)) as f64)
}

/// One recording: cost against gain and calibration, and below them the gap over time.
pub(super) fn replayed(points: &[Point], calibration: &Calibration, lines: &[Line]) -> String {
    let mut svg = Svg::default();
    charts::gains(&mut svg, first(0.0), points);
    charts::calibration(&mut svg, second(0.0), calibration);
    let wide = Frame { at: (LEFT, ROW + TOP), size: (SECOND + SIDE - LEFT, SIDE) };
    lines::draw(&mut svg, wide, "The gap over time", READS, lines);
    lines::legend(&mut svg, (LEGEND, ROW + TOP + 8.0), lines);
    svg.picture(WIDTH, 2.0 * ROW)
}

/// Volumes, a row each: calibration, and the gap over time of the move that is on or was the last.
pub(super) fn shown(views: &[ForecastView]) -> String {
    let mut svg = Svg::default();
    for (nth, view) in views.iter().enumerate() {
        let top = nth as f64 * (ROW + HEAD);
        svg.text((8.0, top + HEAD / 2.0), Anchor::Start, &format!("Volume {} ({})", view.volume, view.role));
        charts::calibration(&mut svg, first(top + HEAD), &Calibration::from(view));
        let points: Vec<GapPoint> = view.gap_over_time.iter().map(point).collect();
        let lines = [of_move("blend", &points)];
        lines::draw(&mut svg, second(top + HEAD), &over(&view.gap_over_time), READS, &lines);
    }
    svg.picture(SECOND + SIDE + LEFT, views.len() as f64 * (ROW + HEAD))
}

/// Room for the name of a volume.
const HEAD: f64 = 26.0;
/// What is along a move.
const READS: (&str, fn(f64) -> String) = ("reads after the switch", |reads| format!("{reads:.0}"));

fn over(points: &[GapView]) -> String {
    match points.last() {
        Some(last) => format!("The gap over time: {:.0} s of a move", last.seconds),
        None => "The gap over time: no move so far".to_string(),
    }
}

fn point(view: &GapView) -> GapPoint {
    GapPoint {
        since: std::time::Duration::try_from_secs_f64(view.seconds).unwrap_or_default(),
        reads: view.reads,
        stalled: view.stalls,
        sequential: view.stalls_sequential,
        oracle: view.stalls_oracle,
    }
}

fn first(top: f64) -> Frame {
    Frame::square((LEFT, top + TOP))
}

fn second(top: f64) -> Frame {
    Frame::square((SECOND, top + TOP))
}

#[cfg(test)]
mod tests {
    use gnomon_forecast::Reliability;

    use super::*;
    use crate::{api::types::BinView, cli::forecast::compare::Row};

    const NAMES: [&str; 11] = [
        "frequency",
        "decay",
        "next-read",
        "readahead",
        "successor",
        "delta-bigram",
        "delta-markov",
        "association",
        "blend",
        "gru",
        "recorded",
    ];

    /// Predictors that cost and gain about the same, as most do.
    fn crowd() -> Vec<Point> {
        let known =
            NAMES.into_iter().zip(0..).map(|(name, nth)| (name, 20.0 + f64::from(nth), 0.2 + f64::from(nth) / 50.0));
        known.chain([("oracle", 0.0, 1.0)]).collect()
    }

    fn gaps() -> Vec<GapPoint> {
        (0..200)
            .map(|read| GapPoint { reads: read, stalled: read / 9, sequential: read / 3, ..GapPoint::default() })
            .collect()
    }

    fn lines() -> Vec<Line> {
        NAMES.iter().map(|name| of_move(name, &gaps())).collect()
    }

    fn chances() -> Calibration {
        let mut reliability = Reliability::default();
        (0..100).for_each(|n| reliability.note(0.75, n % 4 != 0));
        Calibration::from(&reliability)
    }

    fn case(case: &'static str) -> Case {
        let row = |predictor: &&'static str| Row { predictor, mean: 0.5, ..Row::default() };
        Case { case, rows: NAMES.iter().map(row).collect(), experts: Vec::new(), lines: lines() }
    }

    /// Insists that a picture is whole: nothing outside, no text over another, every mark closed.
    fn is_sound(svg: &str) {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        let whole = |line: &str| line.ends_with("/>") || line.ends_with("</text>");
        assert!(svg.lines().skip(1).filter(|line| *line != "</svg>").all(whole), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let of_whole = |name: &str| {
            let word = svg.split_once(&format!(" {name}=\"")).and_then(|(_, rest)| rest.split('"').next());
            word.and_then(|word| word.parse::<f64>().ok()).expect("a size")
        };
        let (width, height, texts) = (of_whole("width"), of_whole("height"), svg::texts(svg));
        for (nth, ([left, top, right, bottom], words)) in texts.iter().enumerate() {
            assert!(*left >= 0.0 && *top >= 0.0 && *right <= width && *bottom <= height, "'{words}' is outside");
            for ([from, above, to, below], other) in &texts[nth + 1..] {
                let apart = right <= from || to <= left || bottom <= above || below <= top;
                assert!(apart, "'{words}' and '{other}' are over each other");
            }
        }
    }

    #[test]
    fn what_is_known_is_drawn_and_what_costs_nothing_is_not_weighed() {
        let svg = replayed(&[("blend", 300.0, 0.75), ("decay", 20.0, -0.5), ("oracle", 0.0, 1.0)], &chances(), &[]);
        assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
        assert!(
            svg.contains("0.000 off in the mean") && svg.contains(">decay<") && !svg.contains(">oracle<"),
            "{svg}"
        );
        let nothing = replayed(&[], &Calibration::default(), &[]);
        assert!(nothing.contains("no forecast has ended") && nothing.contains("no gap so far"), "{nothing}");
        is_sound(&nothing);
    }

    #[test]
    fn pictures_of_many_predictors_can_be_read() {
        is_sound(&replayed(&crowd(), &chances(), &lines()));
        let cases = ["half 1x", "half 4x", "touched 1x", "touched 4x"].map(case);
        let svg = compared(&cases, &crowd(), &chances());
        is_sound(&svg);
        assert_eq!(svg.matches(">share of the gap closed so far<").count(), 4, "{svg}");
        assert_eq!(
            svg.matches(">delta-markov<").count(),
            6,
            "a bar in each case, a dot, and a line in the legend: {svg}"
        );
    }

    #[test]
    fn each_volume_has_its_row() {
        let gap = |point: &GapPoint| GapView {
            reads: point.reads,
            seconds: point.reads as f64,
            stalls: point.stalled,
            stalls_sequential: point.sequential,
            ..GapView::default()
        };
        let moved = ForecastView {
            volume: "root".to_string(),
            role: "primary, <b>".to_string(),
            calibration: vec![BinView { stated: 0.5, came_true: 0.4, ended: 1_000_000 }],
            gap_over_time: gaps().iter().map(gap).collect(),
            ..ForecastView::default()
        };
        let svg = shown(&[moved, ForecastView::default()]);
        is_sound(&svg);
        assert!(
            svg.contains("&lt;b&gt;") && svg.contains("199 s of a move") && svg.contains("no move so far"),
            "{svg}"
        );
    }
}
