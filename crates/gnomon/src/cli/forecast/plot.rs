//! Pictures of forecasts as SVG: what each predictor gained, what that cost, and whether chances meant what they said.
//!
//! Text and colours read on white and on black.

use gnomon_forecast::{BINS, Reliability};

use super::compare::Case;

const BAR: usize = 16;
const GAP: usize = 22;
const LABEL: usize = 120;
const LENGTH: usize = 400;
const NOTE: usize = 60;
/// The side of a square chart, and what is left around it for words.
const SIDE: f64 = 260.0;
const MARGIN: f64 = 44.0;

/// A predictor's cost in nanoseconds an access, and its gain: the share of the gap that it closed.
pub(super) type Point = (&'static str, f64, f64);

/// Means of a comparison: a group of bars for each case, one bar for each predictor; below them the two charts.
pub(super) fn compared(cases: &[Case], points: &[Point], reliability: &Reliability) -> String {
    let (bars, height) = bars(cases);
    let (charts, width) = charts(height as f64, points, reliability);
    picture(width.max((LABEL + LENGTH + NOTE) as f64), height as f64 + SIDE + 2.0 * MARGIN, &(bars + &charts))
}

/// One recording: the two charts.
pub(super) fn replayed(points: &[Point], reliability: &Reliability) -> String {
    let (charts, width) = charts(0.0, points, reliability);
    picture(width, SIDE + 2.0 * MARGIN, &charts)
}

/// What is below address order has no bar, and its number says by how much.
fn bars(cases: &[Case]) -> (String, usize) {
    let (mut body, mut y) = (String::new(), GAP);
    for case in cases {
        body.push_str(&text(8.0, y as f64, "start", case.case));
        y += 8;
        for row in &case.rows {
            let length = (row.mean.clamp(0.0, 1.0) * LENGTH as f64).round() as usize;
            let (colour, height) = (colour(row.predictor), BAR - 4);
            body.push_str(&text((LABEL - 6) as f64, (y + 10) as f64, "end", row.predictor));
            body.push_str(&format!(
                "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{length}\" height=\"{height}\" fill=\"{colour}\"/>\n"
            ));
            body.push_str(&text((LABEL + length + 6) as f64, (y + 10) as f64, "start", &format!("{:.3}", row.mean)));
            y += BAR;
        }
        y += GAP;
    }
    (body, y)
}

/// Cost against gain, and calibration beside it, from `top` down; and how wide they are.
fn charts(top: f64, points: &[Point], reliability: &Reliability) -> (String, f64) {
    let (left, y) = (MARGIN, top + MARGIN);
    let right = left + SIDE + LABEL as f64 + MARGIN;
    let body = gains(left, y, points) + &calibration(right, y, reliability);
    (body, right + SIDE + MARGIN)
}

/// Gain (upwards, from -0.2 to 1) over cost (to the right, from 10 ns to 10 us, by powers of ten).
fn gains(x: f64, y: f64, points: &[Point]) -> String {
    let mut body = frame(x, y, "gap closed, by cost an access: 10 ns to 10 us");
    let up = |gain: f64| y + SIDE * (1.0 - (gain.clamp(-0.2, 1.0) + 0.2) / 1.2);
    let along = |nanos: f64| x + SIDE * ((nanos.max(10.0).log10() - 1.0) / 3.0).min(1.0);
    body.push_str(&line((x, up(0.0)), (x + SIDE, up(0.0))));
    body.push_str(&text(x - 6.0, up(0.0) + 4.0, "end", "0"));
    body.push_str(&text(x - 6.0, up(1.0) + 4.0, "end", "1"));
    // Those that cost nothing have nothing to weigh: silence, address order, the oracle.
    for (name, nanos, gain) in points.iter().filter(|(_, nanos, _)| *nanos > 0.0) {
        body.push_str(&dot(along(*nanos), up(*gain), 4.0, colour(name)));
        body.push_str(&text(along(*nanos) + 7.0, up(*gain) + 4.0, "start", name));
    }
    body
}

/// What came true (upwards) over the chance that was given (to the right); on the diagonal chances mean what they say. The
/// larger the dot, the more forecasts.
fn calibration(x: f64, y: f64, reliability: &Reliability) -> String {
    let error =
        reliability.error().map_or("nothing ended".to_string(), |error| format!("{error:.3} off in the mean"));
    let mut body = frame(x, y, &format!("came true, by the chance given: {error}"));
    body.push_str(&line((x, y + SIDE), (x + SIDE, y)));
    for tenth in [0, BINS / 2, BINS] {
        let share = tenth as f64 / BINS as f64;
        body.push_str(&text(x + share * SIDE, y + SIDE + 16.0, "middle", &format!("{share:.1}")));
        body.push_str(&text(x - 6.0, y + (1.0 - share) * SIDE + 4.0, "end", &format!("{share:.1}")));
    }
    for bin in &reliability.bins {
        let Some((stated, was)) = bin.shares() else { continue };
        let radius = 2.0 + f64::from(bin.ended).log10();
        body.push_str(&dot(x + stated * SIDE, y + (1.0 - was) * SIDE, radius, colour("blend")));
    }
    body
}

fn colour(predictor: &str) -> &'static str {
    match predictor {
        "blend" => "#c2410c",
        "oracle" => "#94a3b8",
        _ => "#475569",
    }
}

fn frame(x: f64, y: f64, words: &str) -> String {
    let edge = format!(
        "<rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"none\" stroke=\"#888\"/>\n"
    );
    edge + &text(x, y - 10.0, "start", words)
}

fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> String {
    format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#888\" stroke-dasharray=\"4\"/>\n"
    )
}

fn dot(x: f64, y: f64, radius: f64, colour: &str) -> String {
    format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"{colour}\"/>\n")
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

fn picture(width: f64, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#888\">\n{body}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_drawn_and_what_costs_nothing_is_not_weighed() {
        let mut reliability = Reliability::default();
        (0..100).for_each(|n| reliability.note(0.75, n % 4 != 0));
        let points = [("blend", 300.0, 0.75), ("decay", 20.0, -0.5), ("oracle", 0.0, 1.0)];
        let svg = replayed(&points, &reliability);
        assert_eq!((svg.matches("<circle").count(), svg.matches("<svg").count()), (3, 1), "{svg}");
        assert!(
            svg.contains("0.000 off in the mean") && svg.contains(">decay<") && !svg.contains(">oracle<"),
            "{svg}"
        );
        let numbers = svg.split('"').filter_map(|word| word.parse::<f64>().ok());
        assert!(
            numbers.clone().count() > 20 && numbers.clone().all(|number| (0.0..1000.0).contains(&number)),
            "{svg}"
        );
        assert!(replayed(&[], &Reliability::default()).contains("nothing ended"));
    }
}
