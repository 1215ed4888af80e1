//! Figures, and how they are shown.

use std::fmt;

use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Table {
    pub title: String,
    pub rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub figures: Vec<Figure>,
    /// Where it stands on a line of how cost grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth: Option<Growth>,
    /// Answers that were not what they had to be.
    pub wrong: u64,
}

/// So many of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Growth {
    pub of: &'static str,
    pub count: usize,
}

#[derive(Debug, Serialize)]
pub struct Figure {
    /// With the unit.
    pub name: String,
    pub value: f64,
}

impl Row {
    pub fn new(name: &impl ToString) -> Self {
        Self {
            name: name.to_string(),
            figures: Vec::new(),
            growth: None,
            wrong: 0,
        }
    }

    pub fn figure(mut self, name: impl Into<String>, value: f64) -> Self {
        let name = name.into();
        self.figures.push(Figure { name, value });
        self
    }

    /// The one figure of its row.
    pub fn found(self, value: f64) -> Self {
        self.figure("found", value)
    }

    /// The most, or the least, that [`Self::found`] should be.
    pub fn goal(self, value: f64) -> Self {
        self.figure("goal", value)
    }

    pub fn growth(mut self, growth: Option<Growth>) -> Self {
        self.growth = growth;
        self
    }

    pub fn wrong(mut self, wrong: u64) -> Self {
        self.wrong = wrong;
        self
    }

    pub fn value(&self, name: &str) -> Option<f64> {
        let found = self.figures.iter().find(|figure| figure.name == name);
        found.map(|figure| figure.value)
    }
}

impl Table {
    pub fn new(title: impl Into<String>, rows: Vec<Row>) -> Self {
        Self {
            title: title.into(),
            rows,
        }
    }

    pub fn wrong(&self) -> u64 {
        self.rows.iter().map(|row| row.wrong).sum()
    }
}

/// The middle one; of an even number, the lower of the two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(f64::NAN)
}

impl fmt::Display for Table {
    /// As Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<&str> = Vec::new();
        for figure in self.rows.iter().flat_map(|row| &row.figures) {
            if !names.contains(&figure.name.as_str()) {
                names.push(&figure.name);
            }
        }
        let mut lines = vec![vec![self.title.clone()]];
        lines[0].extend(names.iter().map(|name| (*name).to_owned()));
        lines[0].push("wrong".to_owned());
        for row in &self.rows {
            let shown = names
                .iter()
                .map(|name| row.value(name).map_or_else(String::new, shown));
            let mut line = vec![row.name.clone()];
            line.extend(shown);
            line.push(row.wrong.to_string());
            lines.push(line);
        }
        let columns = names.len() + 2;
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<usize> = (0..columns).filter_map(width).collect();
        for (at, line) in lines.iter().enumerate() {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                if column == 0 {
                    write!(f, "| {cell:<width$} ")?;
                } else {
                    write!(f, "| {cell:>width$} ")?;
                }
            }
            writeln!(f, "|")?;
            if at == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let colon = if column == 0 { '-' } else { ':' };
                    write!(f, "|{}{colon}", "-".repeat(width + 1))?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// Three digits, or all of a whole number.
pub fn shown(value: f64) -> String {
    match value.abs() {
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown_with_a_column_for_each_figure() {
        let rows = vec![
            Row::new(&"nginx").figure("req/s", 20_512.3),
            Row::new(&"Postern")
                .figure("req/s", 21_000.0)
                .figure("× nginx", 1.024)
                .wrong(2),
        ];
        let expected = "\
| HTTP/1.1 | req/s | × nginx | wrong |
|----------|------:|--------:|------:|
| nginx    | 20512 |         |     0 |
| Postern  | 21000 |    1.02 |     2 |
";
        assert_eq!(Table::new("HTTP/1.1", rows).to_string(), expected);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!(median([]).is_nan());
    }
}
