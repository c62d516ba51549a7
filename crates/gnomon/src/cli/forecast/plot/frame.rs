//! A chart's frame: its edges, what its axes are called, and where a value is.

use super::svg::{Anchor, GREY, Pen, Place, Svg};

/// The side of a chart that is a square.
pub const SIDE: f64 = 260.0;
/// What is left around a chart's edges for words: at its left for ticks and a name, above for a title, below for both.
pub const LEFT: f64 = 64.0;
pub const TOP: f64 = 34.0;
pub const BOTTOM: f64 = 46.0;

/// Lines that help the eye.
pub const HELP: Pen = Pen { colour: GREY, width: 1.0, dashes: "4" };

/// What goes one way in a chart.
pub struct Axis {
    /// What it is, with its unit.
    pub name: &'static str,
    /// Where words stand, as shares of the way, and the words.
    pub ticks: Vec<(f64, String)>,
}

/// The edges of a chart.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Its left upper corner.
    pub at: Place,
    /// Its width and its height.
    pub size: (f64, f64),
}

impl Frame {
    /// A square.
    pub fn square(at: Place) -> Frame {
        Frame { at, size: (SIDE, SIDE) }
    }

    /// Where the shares of the way to the right and upwards meet; what lies outside is at the edge.
    pub fn place(&self, across: f64, up: f64) -> Place {
        let (x, y) = (self.at.0 + across.clamp(0.0, 1.0) * self.size.0, up.clamp(0.0, 1.0) * self.size.1);
        (x, self.at.1 + self.size.1 - y)
    }

    /// Draws the edges, the title and the axes.
    pub fn draw(&self, svg: &mut Svg, title: &str, across: &Axis, up: &Axis) {
        let (x, y) = self.at;
        svg.frame(self.at, self.size);
        svg.text((x, y - 14.0), Anchor::Start, title);
        for (share, words) in &across.ticks {
            let (at, bottom) = self.place(*share, 0.0);
            svg.text((at, bottom + 12.0), Anchor::Middle, words);
        }
        for (share, words) in &up.ticks {
            let (left, at) = self.place(0.0, *share);
            svg.text((left - 6.0, at), Anchor::End, words);
        }
        let (middle, bottom) = self.place(0.5, 0.0);
        svg.text((middle, bottom + 30.0), Anchor::Middle, across.name);
        let (left, middle) = self.place(0.0, 0.5);
        svg.turned((left - 44.0, middle), up.name);
    }

    /// Says why there is nothing in it.
    pub fn say(&self, svg: &mut Svg, words: &str) {
        svg.text(self.place(0.5, 0.5), Anchor::Middle, words);
    }
}
