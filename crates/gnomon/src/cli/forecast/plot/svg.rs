//! The few marks that a picture is made of, as SVG. Text and colours read on white and on black.

/// Source: SVG 1.1, <https://www.w3.org/TR/SVG11/>.
const NAMESPACE: &str = "http://www.w3.org/2000/svg";
/// Height of the letters.
const FONT: f64 = 12.0;
/// A letter's width at most, on the mean of a word: of DejaVu Sans, which is wider than others.
const LETTER: f64 = 7.0;
/// What is neither text of its own colour nor a line of a predictor.
pub const GREY: &str = "#888";

/// A place in the picture: to the right, and down.
pub type Place = (f64, f64);

/// Where a text has its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pen {
    pub colour: &'static str,
    pub width: f64,
    /// Lengths of strokes and gaps; empty for a whole line.
    pub dashes: &'static str,
}

/// A picture in the making.
#[derive(Debug, Default)]
pub struct Svg {
    body: String,
}

impl Svg {
    /// Words on a line whose middle is at `y`.
    pub fn text(&mut self, (x, y): Place, anchor: Anchor, words: &str) {
        let (anchor, words) = (anchor.name(), escaped(words));
        let base = y + FONT / 3.0;
        self.body.push_str(&format!("<text x=\"{x:.1}\" y=\"{base:.1}\" text-anchor=\"{anchor}\">{words}</text>\n"));
    }

    /// Words from below to above, around a place.
    pub fn turned(&mut self, (x, y): Place, words: &str) {
        let words = escaped(words);
        self.body.push_str(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 {x:.1} {y:.1})\">{words}</text>\n"
        ));
    }

    /// A line from place to place.
    pub fn line(&mut self, places: &[Place], pen: Pen) {
        let Pen { colour, width, dashes } = pen;
        let places: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dashes = if dashes.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dashes}\"") };
        self.body.push_str(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"{dashes}/>\n",
            places.join(" ")
        ));
    }

    /// A dot.
    pub fn dot(&mut self, (x, y): Place, radius: f64, colour: &str) {
        self.body.push_str(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"{colour}\"/>\n"));
    }

    /// A bar.
    pub fn bar(&mut self, (x, y): Place, (width, height): (f64, f64), colour: &str) {
        self.body.push_str(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>\n"
        ));
    }

    /// The edges of a rectangle.
    pub fn frame(&mut self, (x, y): Place, (width, height): (f64, f64)) {
        self.body.push_str(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" stroke=\"{GREY}\"/>\n"
        ));
    }

    /// The whole, so wide and so high.
    pub fn picture(&self, width: f64, height: f64) -> String {
        let body = &self.body;
        format!(
            "<svg xmlns=\"{NAMESPACE}\" width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" \
             font-size=\"{FONT}\" fill=\"{GREY}\">\n{body}</svg>\n"
        )
    }
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

/// How wide words are at most.
pub fn width_of(words: &str) -> f64 {
    words.chars().count() as f64 * LETTER
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Where the texts of a picture are, for tests: left, top, right, bottom, and the words.
#[cfg(test)]
pub fn texts(svg: &str) -> Vec<([f64; 4], String)> {
    let value = |mark: &str, name: &str| {
        let rest = mark.split_once(&format!("{name}=\"")).map(|(_, rest)| rest)?;
        rest.split('"').next().map(str::to_string)
    };
    let number =
        |mark: &str, name: &str| value(mark, name).and_then(|word| word.parse::<f64>().ok()).expect("a number");
    let text = |mark: &str| {
        let (x, y) = (number(mark, " x"), number(mark, " y"));
        let words = mark.split_once('>').and_then(|(_, rest)| rest.split('<').next()).expect("words").to_string();
        let wide = width_of(&words);
        let left = match value(mark, "text-anchor").as_deref() {
            Some("start") => x,
            Some("end") => x - wide,
            _ => x - wide / 2.0,
        };
        let lies = [left, y - FONT * 0.75, left + wide, y + FONT * 0.25];
        let stands = [x - FONT * 0.75, y - wide / 2.0, x + FONT * 0.25, y + wide / 2.0];
        (if mark.contains("rotate") { stands } else { lies }, words)
    };
    svg.lines().filter(|line| line.starts_with("<text")).map(text).collect()
}
