//! File descriptors: as many as the process may have, and how many connections they allow for.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Takes the soft limit up to the hard one, and tells both in the log.
pub fn raise() {
    let before = getrlimit(Resource::Nofile);
    let mut wanted = before;
    wanted.current = before.maximum;
    let raised = before.current == before.maximum || setrlimit(Resource::Nofile, wanted).is_ok();
    tracing::info!(
        before = before.current,
        hard = before.maximum,
        raised,
        "file descriptors"
    );
}

/// How many connections a listener may have, `most` at the most: each may need a second one to an
/// upstream, and a tenth is kept for everything else.
pub fn connections(most: usize) -> usize {
    // No limit at all leaves `most`.
    getrlimit(Resource::Nofile)
        .current
        .map_or(most, |limit| bound(limit, most))
}

/// How many connections the hard limit of this process allows for; `None`: there is no limit.
pub fn possible() -> Option<usize> {
    let limit = getrlimit(Resource::Nofile).maximum?;
    Some(bound(limit, usize::MAX))
}

fn bound(limit: u64, most: usize) -> usize {
    let fitting = usize::try_from(limit.saturating_mul(5) / 11).unwrap_or(usize::MAX);
    fitting.min(most).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_their_other_half() {
        assert_eq!(bound(1024, 50_000), 465);
        assert_eq!(bound(1_000_000_000, 50_000), 50_000);
        assert_eq!(bound(u64::MAX, 50_000), 50_000);
        assert_eq!(bound(1, 50_000), 1);
        for limit in [256, 1024, 20_000] {
            let connections = bound(limit, usize::MAX) as u64;
            assert!(connections * 22 / 10 <= limit, "{limit}");
        }
    }
}
