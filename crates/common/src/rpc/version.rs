//! Whether two versions of Postern may work together: one beside the next, as during an upgrade,
//! and no further.

/// How another version stands to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skew {
    Same,
    /// Works, and should not last.
    Near,
    /// Was never tried together.
    Far,
}

/// Compares two versions as `Cargo.toml` writes them.
pub(super) fn skew(ours: &str, theirs: &str) -> Skew {
    if ours == theirs {
        return Skew::Same;
    }
    match (parts(ours), parts(theirs)) {
        (Some((major, minor)), Some((their_major, their_minor)))
            if major == their_major && minor.abs_diff(their_minor) <= 1 =>
        {
            Skew::Near
        }
        _ => Skew::Far,
    }
}

fn parts(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_version_beside_the_next() {
        assert_eq!(skew("0.4.1", "0.4.1"), Skew::Same);
        for near in ["0.4.2", "0.3.9", "0.5.0-rc.1"] {
            assert_eq!(skew("0.4.1", near), Skew::Near, "{near}");
        }
        for far in ["0.6.0", "0.2.0", "1.4.1", "", "x", "0"] {
            assert_eq!(skew("0.4.1", far), Skew::Far, "{far}");
        }
    }
}
