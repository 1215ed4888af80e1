//! Nearest known name, for "did you mean".

/// The known name nearest to `word`, if near enough to be meant.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let word: Vec<char> = word
        .chars()
        .map(|c| {
            if c == '-' {
                '_'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .take(64)
        .collect();
    let limit = (word.len() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|name| name.chars().count().abs_diff(word.len()) <= limit)
        .map(|name| (distance(&word, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// How many letters to insert, remove, replace or swap with their neighbour, ignoring ASCII case
/// (optimal string alignment).
fn distance(word: &[char], name: &str) -> usize {
    let name: Vec<char> = name.chars().map(|c| c.to_ascii_lowercase()).collect();
    // One row for each prefix of `name`, one column for each prefix of `word`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=word.len()).collect()];
    let at = |rows: &[Vec<usize>], row: usize, column: usize| -> usize {
        rows.get(row)
            .and_then(|row| row.get(column))
            .copied()
            .unwrap_or(usize::MAX)
    };
    for (i, b) in name.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, a) in word.iter().enumerate() {
            let left = row.last().copied().unwrap_or(usize::MAX);
            let mut best = (at(&rows, i, j) + usize::from(a != b))
                .min(at(&rows, i, j + 1) + 1)
                .min(left + 1);
            if let (Some(before_i), Some(before_j)) = (i.checked_sub(1), j.checked_sub(1))
                && word.get(before_j) == Some(b)
                && name.get(before_i) == Some(a)
            {
                best = best.min(at(&rows, before_i, before_j) + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    at(&rows, name.len(), word.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant_and_nothing_else() {
        let known = ["email", "domain", "http_method", "in", "is"];
        assert_eq!(nearest("emial", known), Some("email"));
        assert_eq!(nearest("e-mail", known), Some("email"));
        assert_eq!(nearest("http-method", known), Some("http_method"));
        assert_eq!(nearest("Domains", known), Some("domain"));
        assert_eq!(nearest("frobnicate", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn distances() {
        let word: Vec<char> = "kitten".chars().collect();
        assert_eq!(distance(&word, "sitting"), 3);
        assert_eq!(distance(&word, "iktten"), 1);
        assert_eq!(distance(&word, "Kitten"), 0);
        assert_eq!(distance(&word, ""), 6);
        assert_eq!(distance(&[], "abc"), 3);
    }
}
