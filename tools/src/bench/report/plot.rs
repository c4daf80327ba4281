//! Drawing one plot. The crate that draws knows nothing of style sheets, so each thing is drawn in
//! a colour that stands for its class, and the page says what the class looks like, by day and by night.

use std::ops::Range;

use anyhow::anyhow;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;

use super::axis::{Axis, Quantity};

/// Small, so that its text can still be read where the page is as narrow as a phone.
const WIDTH: u32 = 440;
const HEIGHT: u32 = 270;
const FONT: (&str, u32) = ("sans-serif", 17);
const LINE_WIDTH: u32 = 2;
/// Room for the labels and the title of an axis, in pixels.
const BELOW: u32 = 46;
const LEFT: u32 = 74;
/// A curve with more points than this has no tips: they would lie on each other.
const TIPS_MAX: usize = 150;

/// Colours that stand for classes.
const TEXT: RGBColor = RGBColor(1, 0, 1);
const FRAME: RGBColor = RGBColor(1, 0, 2);
const GRID: RGBColor = RGBColor(1, 0, 3);

/// What a curve looks like: the number of a colour and of a kind of dashes in the style sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) colour: u8,
    pub(super) dashes: u8,
}

/// One curve.
#[derive(Debug)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) look: Look,
    /// Ascending; where the second is unknown, the curve has a gap.
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// One plot. Each curve has a point that is known.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) x: Quantity,
    pub(super) y: Quantity,
    /// What a value is called in the tip of a point.
    pub(super) show: fn(f64) -> String,
    pub(super) curves: Vec<Curve>,
}

/// Has the ticks of an [`Axis`] drawn, and no others. What stands along it are places.
struct Places<'a>(&'a Axis);

/// A drawing, which has to be shown as it is.
#[derive(Debug)]
pub(super) struct Svg(pub(super) String);

impl Look {
    /// The classes of a line.
    pub(super) fn classes(self) -> String {
        format!("curve c{} d{}", self.colour, self.dashes)
    }
}

impl Ranged for Places<'_> {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    #[expect(clippy::cast_possible_truncation, reason = "pixels are few")]
    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let Range { start, end } = self.0.range;
        from + (f64::from(to - from) * (place - start) / (end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.0.ticks.iter().map(|(place, _)| *place).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.0.range.clone()
    }
}

impl ValueFormatter<f64> for Places<'_> {
    fn format(place: &f64) -> String {
        place.to_string()
    }

    fn format_ext(&self, place: &f64) -> String {
        self.0.label(*place)
    }
}

impl Curve {
    fn known(&self) -> impl Iterator<Item = (f64, f64)> {
        self.points.iter().filter_map(|&(x, y)| Some((x, y?)))
    }

    /// Points between gaps.
    fn stretches(&self) -> impl Iterator<Item = Vec<(f64, f64)>> {
        let stretches = self.points.split(|point| point.1.is_none());
        let known = |stretch: &[(f64, Option<f64>)]| {
            stretch.iter().filter_map(|&(x, y)| Some((x, y?))).collect::<Vec<_>>()
        };
        stretches.map(known).filter(|stretch| !stretch.is_empty())
    }
}

impl Plot {
    /// Draws it.
    pub(super) fn draw(&self) -> anyhow::Result<Svg> {
        let known = || self.curves.iter().flat_map(Curve::known);
        let x = Axis::over(self.x, known().map(|(x, _)| x));
        let y = Axis::over(self.y, known().map(|(_, y)| y));
        let mut svg = String::new();
        let tips = self
            .draw_onto(&mut svg, &x, &y)
            .map_err(|error| anyhow!("cannot draw the plot of {}: {error}", self.title))?;
        Ok(Svg(self.styled(&svg, &tips)))
    }

    /// Draws everything but the tips of the points, which it returns.
    fn draw_onto(
        &self,
        svg: &mut String,
        x: &Axis,
        y: &Axis,
    ) -> Result<String, Box<dyn std::error::Error + '_>> {
        let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .margin_right(24)
            .x_label_area_size(BELOW)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(Places(x), Places(y))
            .map_err(|error| error.to_string())?;
        let text = FONT.into_font().color(&TEXT);
        chart
            .configure_mesh()
            .axis_style(FRAME)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(text.clone())
            .axis_desc_style(text)
            .x_desc(&x.title)
            .y_desc(&y.title)
            .draw()
            .map_err(|error| error.to_string())?;
        let mut tips = String::new();
        for (number, curve) in self.curves.iter().enumerate() {
            let colour = stand_in(number);
            let place = |(at, value): (f64, f64)| (x.place(at), y.place(value));
            for stretch in curve.stretches() {
                let places: Vec<_> = stretch.into_iter().map(place).collect();
                if let [alone] = places[..] {
                    chart.draw_series([Circle::new(alone, LINE_WIDTH, colour.filled())])
                } else {
                    chart.draw_series(LineSeries::new(places, colour.stroke_width(LINE_WIDTH)))
                }
                .map_err(|error| error.to_string())?;
            }
            for point in curve.known().filter(|_| curve.points.len() <= TIPS_MAX) {
                let (left, top) = chart.backend_coord(&place(point));
                tips += &self.tip(curve, point, left, top);
            }
        }
        area.present().map_err(|error| error.to_string())?;
        drop(chart);
        Ok(tips)
    }

    fn tip(&self, curve: &Curve, (at, value): (f64, f64), left: i32, top: i32) -> String {
        let at = match self.x {
            Quantity::Quantile => format!("{:.3} %", at * 100.0),
            _ => format!("at {at:.1} s"),
        };
        let text = super::html::escape(&format!("{}, {at}: {}", curve.name, (self.show)(value)));
        format!(
            "<circle class=\"tip\" cx=\"{left}\" cy=\"{top}\" r=\"6\"><title>{text}</title></circle>\n"
        )
    }

    /// Puts classes where colours stand for them.
    fn styled(&self, svg: &str, tips: &str) -> String {
        let mut svg = svg.to_owned();
        for (colour, class) in [(TEXT, "text"), (FRAME, "frame"), (GRID, "grid")] {
            svg = with_class(&svg, colour, class, class);
        }
        for (number, curve) in self.curves.iter().enumerate() {
            let dot = format!("dot c{}", curve.look.colour);
            svg = with_class(&svg, stand_in(number), &curve.look.classes(), &dot);
        }
        let label =
            format!("<svg role=\"img\" aria-label=\"{}\" ", super::html::escape(self.title));
        svg = svg.replacen("<svg ", &label, 1).replace(" opacity=\"1\"", "");
        svg.replace("</svg>", &format!("{tips}</svg>"))
    }
}

/// The colour in which the curve of this number is drawn.
fn stand_in(number: usize) -> RGBColor {
    RGBColor(1, 1, u8::try_from(number).unwrap_or(u8::MAX))
}

fn with_class(svg: &str, colour: RGBColor, line: &str, filled: &str) -> String {
    let RGBColor(red, green, blue) = colour;
    let colour = format!("#{red:02X}{green:02X}{blue:02X}");
    svg.replace(&format!("stroke=\"{colour}\""), &format!("class=\"{line}\""))
        .replace(&format!("fill=\"{colour}\" stroke=\"none\""), &format!("class=\"{filled}\""))
        .replace(&format!("fill=\"{colour}\""), &format!("class=\"{filled}\""))
}
