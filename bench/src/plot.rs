//! How cost grows, drawn as SVG: a column for each thing that there is more and more of, a row for
//! each figure. Counts are on a logarithmic axis, figures on one from zero, the same for a whole row.

use std::fmt::Write as _;

use crate::table::{Row, shown};

/// As tables have them, and in words.
const FIGURES: [(&str, &str); 2] = [
    ("CPU µs", "CPU µs a request"),
    ("RSS MiB", "Resident memory, MiB"),
];

/// Of one panel, in pixels, and the room around it.
const WIDTH: f64 = 190.0;
const HEIGHT: f64 = 130.0;
const GAP: f64 = 24.0;
const LEFT: f64 = 52.0;
const ABOVE: f64 = 56.0;
const BELOW: f64 = 28.0;
/// From the sides of a panel to its first and last point.
const INSET: f64 = 14.0;

/// Gridlines above zero, at most.
const STEPS: f64 = 4.0;

const STYLE: &str = "\
svg { --surface: #fcfcfb; --ink: #0b0b0b; --muted: #52514e; --grid: #e1e0d9; --line: #2a78d6 }
@media (prefers-color-scheme: dark) {
  svg { --surface: #1a1a19; --ink: #ffffff; --muted: #c3c2b7; --grid: #383835; --line: #3987e5 }
}
rect { fill: var(--surface) }
text { fill: var(--muted); font: 11px system-ui, sans-serif }
.figure { fill: var(--ink); font-size: 13px; font-weight: 600 }
.value { fill: var(--ink) }
.grid { stroke: var(--grid) }
polyline { fill: none; stroke: var(--line); stroke-width: 2 }
circle { fill: var(--line); stroke: var(--surface); stroke-width: 2 }";

/// A line: what there is more of, and how many there were at which cost.
struct Line<'a> {
    of: &'a str,
    points: Vec<(usize, &'a Row)>,
}

/// Draws those rows that are part of a line.
pub fn svg(rows: &[&Row]) -> String {
    let lines = lines(rows);
    let width = LEFT + lines.len() as f64 * (WIDTH + GAP);
    let height = FIGURES.len() as f64 * (ABOVE + HEIGHT + BELOW);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\" aria-labelledby=\"title desc\">\n\
         <title id=\"title\">How cost grows</title>\n<desc id=\"desc\">{}</desc>\n\
         <style>\n{STYLE}\n</style>\n<rect width=\"{width}\" height=\"{height}\"/>\n",
        described(&lines)
    );
    for (at, figure) in FIGURES.iter().enumerate() {
        let top = at as f64 * (ABOVE + HEIGHT + BELOW) + ABOVE;
        draw_row(&mut out, &lines, *figure, top);
    }
    out.push_str("</svg>\n");
    out
}

fn lines<'a>(rows: &[&'a Row]) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for row in rows {
        let Some(growth) = row.growth else { continue };
        let point = (growth.count, *row);
        match lines.iter_mut().find(|line| line.of == growth.of) {
            Some(line) => line.points.push(point),
            None => lines.push(Line {
                of: growth.of,
                points: vec![point],
            }),
        }
    }
    lines
}

/// All that is drawn, for those who do not see it.
fn described(lines: &[Line<'_>]) -> String {
    let mut text = String::new();
    for (name, words) in FIGURES {
        for line in lines {
            let points = line.points.iter().map(|(count, row)| {
                let value = row.value(name).unwrap_or_default();
                format!("{} at {}", shown(value), grouped(*count))
            });
            let points: Vec<_> = points.collect();
            write!(text, "{words}, by {}: {}. ", line.of, points.join(", ")).expect("text grows");
        }
    }
    text.trim_end().to_owned()
}

/// One figure in all panels.
fn draw_row(out: &mut String, lines: &[Line<'_>], (name, words): (&str, &str), top: f64) {
    let values = lines.iter().flat_map(|line| &line.points);
    let values = values.filter_map(|(_, row)| row.value(name));
    let most = values.fold(0.0, f64::max);
    let step = step(most);
    let steps = (most / step).ceil().max(1.0);
    let y = |value: f64| top + HEIGHT * (1.0 - value / (step * steps));
    let heading = top - 36.0;
    text(out, "figure", "start", (8.0, heading), words);
    for number in 0..=steps as u32 {
        let value = step * f64::from(number);
        text(
            out,
            "tick",
            "end",
            (LEFT - 6.0, y(value) + 4.0),
            &format!("{value}"),
        );
    }
    for (at, line) in lines.iter().enumerate() {
        let left = LEFT + at as f64 * (WIDTH + GAP);
        text(out, "of", "start", (left, top - 14.0), line.of);
        for number in 0..=steps as u32 {
            let y = y(step * f64::from(number));
            writeln!(
                out,
                "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                left + WIDTH
            )
            .expect("text grows");
        }
        draw_line(out, line, name, left, top + HEIGHT, y);
    }
}

fn draw_line(
    out: &mut String,
    line: &Line<'_>,
    name: &str,
    left: f64,
    bottom: f64,
    y: impl Fn(f64) -> f64,
) {
    let counts = || line.points.iter().map(|(count, _)| *count);
    let (least, most) = (
        counts().min().unwrap_or_default(),
        counts().max().unwrap_or_default(),
    );
    let x = |count| left + INSET + position(count, least, most) * (WIDTH - 2.0 * INSET);
    let points = line.points.iter().filter_map(|(count, row)| {
        let value = row.value(name)?;
        Some((*count, value, x(*count), y(value)))
    });
    let points: Vec<_> = points.collect();
    let corners: Vec<_> = points
        .iter()
        .map(|(.., x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    writeln!(out, "<polyline points=\"{}\"/>", corners.join(" ")).expect("text grows");
    for (at, (count, value, x, y)) in points.iter().enumerate() {
        writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>").expect("text grows");
        text(out, "tick", "middle", (*x, bottom + 16.0), &grouped(*count));
        let (first, last) = (at == 0, at + 1 == points.len());
        if first || last {
            let (anchor, x) = if first {
                ("start", x - 6.0)
            } else {
                ("end", x + 6.0)
            };
            text(out, "value", anchor, (x, y - 9.0), &shown(*value));
        }
    }
}

/// `text` is of ours: it needs no escaping.
fn text(out: &mut String, class: &str, anchor: &str, (x, y): (f64, f64), text: &str) {
    writeln!(
        out,
        "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"
    )
    .expect("text grows");
}

/// From 0 to 1 on a logarithmic axis; in the middle when there is only one.
fn position(count: usize, least: usize, most: usize) -> f64 {
    if least == most {
        return 0.5;
    }
    let log = |count: usize| (count as f64).ln();
    (log(count) - log(least)) / (log(most) - log(least))
}

/// The finest distance of gridlines (1, 2 or 5 of a power of ten) that needs few of them.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most.max(STEPS) / STEPS).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|it| it * power);
    let enough = steps.into_iter().find(|step| most <= step * STEPS);
    enough.unwrap_or(power * 10.0)
}

/// `10,000`
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Growth;

    fn row(of: &'static str, count: usize, cpu: f64, rss: f64) -> Row {
        Row::new(&of)
            .figure("CPU µs", cpu)
            .figure("RSS MiB", rss)
            .growth(Some(Growth { of, count }))
    }

    #[test]
    fn ten_times_as_many_are_always_as_far() {
        let rows = [
            row("routes", 1, 20.0, 10.0),
            row("routes", 100, 30.0, 10.0),
            row("routes", 10_000, 0.0, 40.0),
            Row::new(&"not of a line").figure("CPU µs", 4000.0),
        ];
        let drawn = svg(&rows.iter().collect::<Vec<_>>());
        // From zero: 30 is the topmost gridline, 56 below the upper side; the axis is 130 lower.
        assert!(drawn.contains("<polyline points=\"66.0,99.3 147.0,56.0 228.0,186.0\"/>"));
        assert!(drawn.contains("<polyline points=\"66.0,367.5 147.0,367.5 228.0,270.0\"/>"));
        assert_eq!(drawn.matches("<polyline").count(), 2);
        assert!(
            drawn.contains("CPU µs a request, by routes: 20.0 at 1, 30.0 at 100, 0.00 at 10,000.")
        );
    }

    #[test]
    fn each_kind_has_a_panel_of_its_own() {
        let rows = [row("routes", 1, 20.0, 10.0), row("cores", 1, 20.0, 10.0)];
        let drawn = svg(&rows.iter().collect::<Vec<_>>());
        assert!(drawn.contains("<polyline points=\"147.0,56.0\"/>"));
        assert!(drawn.contains("<polyline points=\"361.0,56.0\"/>"));
    }

    #[test]
    fn gridlines_are_few_and_round() {
        for (most, expected) in [
            (20.0, 5.0),
            (26.3, 10.0),
            (40.0, 10.0),
            (127.0, 50.0),
            (0.0, 1.0),
        ] {
            assert!(
                (step(most) - expected).abs() < 1e-9,
                "{most}: {}",
                step(most)
            );
        }
    }

    #[test]
    fn counts_are_read_easily() {
        assert_eq!(
            [1, 100, 1_000, 100_000].map(grouped),
            ["1", "100", "1,000", "100,000"]
        );
    }
}
