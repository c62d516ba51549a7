//! Bars as SVG: one group for each case, one bar for each contender, each group scaled to its longest.

use super::{Better, Row, table::median};

const BAR: usize = 18;
const GAP: usize = 16;
const LABEL: usize = 150;
const LENGTH: usize = 420;
/// Right of the longest bar: "qemu-storage-daemon 123456 IOPS" at about 7 pixels a letter.
const NOTE: usize = 240;
const COLOURS: &[&str] = &["#c2410c", "#475569", "#94a3b8", "#cbd5e1"];

/// The whole picture. Text and colours read on white and on black.
pub(super) fn bars(rows: &[Row]) -> String {
    let mut body = String::new();
    let mut y = GAP;
    for row in rows {
        body.push_str(&text(8, y + 13, "start", &row.case.name));
        if row.case.better == Better::Lower {
            body.push_str(&text(8, y + BAR + 13, "start", "less is better"));
        }
        let longest = row.samples.iter().map(|(_, samples)| median(samples)).fold(f64::MIN_POSITIVE, f64::max);
        for (at, (name, samples)) in row.samples.iter().enumerate() {
            let value = median(samples);
            let length = (value / longest * LENGTH as f64).round() as usize;
            let colour = COLOURS[at.min(COLOURS.len() - 1)];
            body.push_str(&format!(
                "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{length}\" height=\"{}\" fill=\"{colour}\"/>\n",
                BAR - 2
            ));
            let label = format!("{name} {value:.0} {}", row.case.unit);
            body.push_str(&text(LABEL + length + 6, y + 13, "start", &label));
            y += BAR;
        }
        y += GAP;
    }
    let width = LABEL + LENGTH + NOTE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{y}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#888\">\n{body}</svg>\n"
    )
}

fn text(x: usize, y: usize, anchor: &str, words: &str) -> String {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Case;

    #[test]
    fn the_longest_bar_is_full_and_names_are_escaped() {
        let samples = vec![("a<b", vec![50.0]), ("c", vec![100.0])];
        let svg = bars(&[Row { case: Case { name: "case".to_owned(), unit: "x", better: Better::Higher }, samples }]);
        assert!(svg.contains("width=\"420\"") && svg.contains("width=\"210\"") && svg.contains("a&lt;b 50 x"));
        assert_eq!((svg.matches("<rect").count(), svg.matches("<svg").count()), (2, 1));
    }
}
