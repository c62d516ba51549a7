//! How much of the gap was closed so far, as lines from the switch on.

use gnomon_cycle::GapPoint;

use super::{
    frame::{Axis, Frame, HELP},
    svg::{Anchor, Pen, Place, Svg},
};

/// Steps in which recordings of different lengths are put side by side.
const STEPS: usize = 100;
/// How far below address order is drawn at most; what is worse runs along the edge.
const LOWEST: f64 = -1.0;
/// Colours of lines, and dashes for those after the last colour.
const COLOURS: [&str; 6] = ["#2563eb", "#16a34a", "#9333ea", "#0891b2", "#ca8a04", "#db2777"];
const DASHES: [&str; 2] = ["", "5 3"];

/// One line: how far along, and the share of the gap that was closed by then; none where there was no gap yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, Option<f64>)>,
}

/// Whether a predictor has something to show: address order and the oracle are 0 and 1 by definition, silence carries
/// nothing, and none of them thinks.
pub fn is_drawn(predictor: &str) -> bool {
    !["silence", "sequential", "oracle"].contains(&predictor)
}

/// One move, by the reads after its switch.
pub fn of_move(name: &str, points: &[GapPoint]) -> Line {
    let points = points.iter().map(|point| (point.reads as f64, point.closed()));
    Line { name: name.to_string(), points: points.collect() }
}

/// The mean of several moves, by the share of each one's reads, 0 to 100. Moves without a gap so far do not count.
pub fn mean<'a>(name: &str, moves: impl Iterator<Item = &'a [GapPoint]> + Clone) -> Line {
    let point = |step: usize| {
        let known: Vec<f64> = moves.clone().filter_map(|points| closed_at(points, step)).collect();
        let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
        (step as f64 * 100.0 / STEPS as f64, (!known.is_empty()).then_some(mean))
    };
    Line { name: name.to_string(), points: (0..=STEPS).map(point).collect() }
}

/// What was closed after so many hundredths of a move's reads.
fn closed_at(points: &[GapPoint], step: usize) -> Option<f64> {
    let reads = points.last()?.reads as usize * step / STEPS;
    let after = points.partition_point(|point| point.reads as usize <= reads);
    points[after.checked_sub(1)?].closed()
}

/// A chart of lines: `across` says what is along it, and how its numbers are said.
pub fn draw(
    svg: &mut Svg,
    frame: Frame,
    title: &str,
    (across, said): (&'static str, fn(f64) -> String),
    lines: &[Line],
) {
    let values = || lines.iter().flat_map(|line| &line.points);
    let most = values().map(|(along, _)| *along).fold(0.0, f64::max).max(1.0);
    // To the quarter below, so that the tick there is a number that people like.
    let lowest = values().filter_map(|(_, closed)| *closed).fold(0.0, f64::min).max(LOWEST);
    let lowest = (lowest * 4.0).floor() / 4.0;
    let up = |closed: f64| (closed - lowest) / (1.0 - lowest);
    let mut ticks: Vec<(f64, String)> = [0.0, 0.5, 1.0].map(|at| (up(at), format!("{at:.1}"))).to_vec();
    ticks.extend((lowest < 0.0).then(|| (0.0, format!("{lowest:.2}"))));
    let mut halves = [0.0, 0.5, 1.0].map(|share| (share, said(share * most))).to_vec();
    halves.dedup_by(|one, other| one.1 == other.1);
    let across = Axis { name: across, ticks: halves };
    frame.draw(svg, title, &across, &Axis { name: "share of the gap closed so far", ticks });
    svg.line(&[frame.place(0.0, up(0.0)), frame.place(1.0, up(0.0))], HELP);
    if values().all(|(_, closed)| closed.is_none()) {
        return frame.say(svg, "no gap so far");
    }
    for (nth, line) in lines.iter().enumerate() {
        let places =
            line.points.iter().map(|(along, closed)| closed.map(|closed| frame.place(along / most, up(closed))));
        run_through(svg, &places.collect::<Vec<_>>(), pen(&line.name, nth));
    }
}

/// Draws what hangs together; a single point is a dot.
fn run_through(svg: &mut Svg, places: &[Option<Place>], pen: Pen) {
    for run in places.split(Option::is_none) {
        let run: Vec<Place> = run.iter().copied().flatten().collect();
        match run[..] {
            [] => {}
            [one] => svg.dot(one, pen.width, pen.colour),
            _ => svg.line(&run, pen),
        }
    }
}

/// Who has which line, from a place downwards.
pub fn legend(svg: &mut Svg, (x, y): Place, lines: &[Line]) {
    for (nth, line) in lines.iter().enumerate() {
        let y = y + nth as f64 * 18.0;
        svg.line(&[(x, y), (x + 22.0, y)], pen(&line.name, nth));
        svg.text((x + 28.0, y), Anchor::Start, &line.name);
    }
}

fn pen(name: &str, nth: usize) -> Pen {
    match name {
        "blend" => Pen { colour: "#c2410c", width: 2.5, dashes: "" },
        _ => Pen {
            colour: COLOURS[nth % COLOURS.len()],
            width: 1.2,
            dashes: DASHES[nth / COLOURS.len() % DASHES.len()],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(reads: u64, stalled: u64, sequential: u64) -> GapPoint {
        GapPoint { reads, stalled, sequential, ..GapPoint::default() }
    }

    #[test]
    fn recordings_of_different_lengths_are_put_side_by_side() {
        let short = [gap(0, 0, 0), gap(10, 0, 2)];
        let long = [gap(0, 0, 0), gap(500, 2, 2), gap(1000, 2, 4)];
        let line = mean("blend", [&short[..], &long[..], &[]].into_iter());
        let at = |percent: usize| line.points[percent];
        assert_eq!(
            [at(0), at(49), at(50), at(100)],
            [(0.0, None), (49.0, None), (50.0, Some(0.0)), (100.0, Some(0.75))]
        );
    }

    #[test]
    fn a_line_ends_where_there_is_no_gap() {
        let mut svg = Svg::default();
        let line = Line {
            name: "a".into(),
            points: vec![(0.0, Some(1.0)), (1.0, Some(0.5)), (2.0, None), (3.0, Some(-9.0))],
        };
        let frame = Frame::square((100.0, 50.0));
        draw(&mut svg, frame, "title", ("reads", |along| format!("{along}")), &[line]);
        let svg = svg.picture(500.0, 500.0);
        assert!(svg.contains("points=\"100.0,50.0 186.7,115.0\""), "{svg}");
        assert!(
            svg.contains("<circle cx=\"360.0\" cy=\"310.0\""),
            "what is worse than can be drawn is at the edge: {svg}"
        );
        assert!(svg.contains(">-1.00<") && svg.contains(">1.5<") && !svg.contains("no gap"), "{svg}");
    }
}
