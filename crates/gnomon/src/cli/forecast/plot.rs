//! The means of a comparison as SVG: a group of bars for each case, one bar for each predictor.

use super::compare::Case;

const BAR: usize = 16;
const GAP: usize = 22;
const LABEL: usize = 120;
const LENGTH: usize = 400;
const NOTE: usize = 60;

/// The whole picture. Text and colours read on white and on black. What is below address order has no bar, and its
/// number says by how much.
pub(super) fn means(cases: &[Case]) -> String {
    let (mut body, mut y) = (String::new(), GAP);
    for case in cases {
        body.push_str(&text(8, y, "start", case.case));
        y += 8;
        for row in &case.rows {
            let length = (row.mean.clamp(0.0, 1.0) * LENGTH as f64).round() as usize;
            let colour = match row.predictor {
                "blend" => "#c2410c",
                "oracle" => "#94a3b8",
                _ => "#475569",
            };
            let height = BAR - 4;
            body.push_str(&text(LABEL - 6, y + 10, "end", row.predictor));
            body.push_str(&format!(
                "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{length}\" height=\"{height}\" fill=\"{colour}\"/>\n"
            ));
            body.push_str(&text(LABEL + length + 6, y + 10, "start", &format!("{:.3}", row.mean)));
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
    format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{words}</text>\n")
}
