//! Which address of which endpoint takes the next request. Pure but for a counter and the dice.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use postern_common::config::LoadBalancing;

/// How a route chooses, and where it is in its round.
#[derive(Debug)]
pub(crate) struct Choice {
    policy: LoadBalancing,
    round: AtomicUsize,
}

/// One address that could take the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Index of the member in its cluster.
    pub member: usize,
    pub address: SocketAddr,
    pub weight: u32,
    /// Requests under way there.
    pub load: usize,
}

impl Choice {
    pub(crate) fn new(policy: LoadBalancing) -> Self {
        Self {
            policy,
            round: AtomicUsize::new(0),
        }
    }

    /// Chooses among `candidates`. `key` keeps requests of one session together under the hashing
    /// policies, `dice` are random bits.
    pub(crate) fn pick<'c>(
        &self,
        candidates: &'c [Candidate],
        key: Option<u64>,
        dice: u64,
    ) -> Option<&'c Candidate> {
        if let [] | [_] = candidates {
            return candidates.first();
        }
        match self.policy {
            LoadBalancing::RoundRobin => {
                let round = self.round.fetch_add(1, Ordering::Relaxed);
                by_weight(candidates, u64::try_from(round).unwrap_or(u64::MAX))
            }
            LoadBalancing::Random => by_weight(candidates, dice),
            LoadBalancing::LeastRequest => {
                let first = by_weight(candidates, dice & 0xffff_ffff)?;
                let second = by_weight(candidates, dice >> 32)?;
                Some(if second.load < first.load {
                    second
                } else {
                    first
                })
            }
            LoadBalancing::RingHash | LoadBalancing::Maglev => {
                let key = key.unwrap_or(dice);
                candidates
                    .iter()
                    .max_by_key(|candidate| rendezvous(candidate, key))
            }
        }
    }
}

/// The candidate in whose share of the weights `point` falls.
fn by_weight(candidates: &[Candidate], point: u64) -> Option<&Candidate> {
    let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
    let mut point = point.checked_rem(total)?;
    for candidate in candidates {
        let weight = u64::from(candidate.weight);
        if point < weight {
            return Some(candidate);
        }
        point -= weight;
    }
    candidates.last()
}

/// Highest random weight: when an address leaves, only its own sessions move. A weight counts as
/// so many tickets, at most 64.
fn rendezvous(candidate: &Candidate, key: u64) -> u64 {
    let address = match candidate.address.ip() {
        std::net::IpAddr::V4(ip) => u64::from(ip.to_bits()),
        std::net::IpAddr::V6(ip) => {
            let bits = ip.to_bits().to_be_bytes();
            bits.iter()
                .fold(0, |hash, byte| mix(hash ^ u64::from(*byte)))
        }
    };
    let place = mix(mix(address) ^ u64::from(candidate.address.port()) ^ key);
    let tickets = 0..u64::from(candidate.weight.clamp(1, 64));
    tickets
        .map(|ticket| mix(place ^ mix(ticket)))
        .max()
        .unwrap_or_default()
}

/// The finalizer of SplitMix64: every bit of the input reaches every bit of the output, and the
/// same on every core and replica.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let one = |(member, weight): (usize, &u32)| Candidate {
            member,
            address: SocketAddr::from(([10, 0, 0, u8::try_from(member).unwrap()], 80)),
            weight: *weight,
            load: member,
        };
        weights.iter().enumerate().map(one).collect()
    }

    fn counts(policy: LoadBalancing, weights: &[u32], n: u64) -> HashMap<usize, u64> {
        let (choice, candidates) = (Choice::new(policy), candidates(weights));
        let mut counts = HashMap::new();
        for i in 0..n {
            let dice = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let picked = choice.pick(&candidates, None, dice).unwrap();
            *counts.entry(picked.member).or_default() += 1;
        }
        counts
    }

    #[test]
    fn rounds_follow_the_weights() {
        let counts = counts(LoadBalancing::RoundRobin, &[1, 3], 400);
        assert_eq!((counts[&0], counts[&1]), (100, 300));
    }

    #[test]
    fn random_reaches_everyone() {
        let counts = counts(LoadBalancing::Random, &[1, 1, 1], 300);
        assert!(counts.values().all(|n| *n > 50), "{counts:?}");
    }

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let counts = counts(LoadBalancing::LeastRequest, &[1, 1, 1, 1], 1000);
        assert!(
            counts[&0] > counts.get(&3).copied().unwrap_or(0),
            "{counts:?}"
        );
    }

    #[test]
    fn a_session_stays_and_only_the_lost_ones_move() {
        let choice = Choice::new(LoadBalancing::Maglev);
        let all = candidates(&[1, 1, 1, 1]);
        for key in 0..200 {
            let before = choice.pick(&all, Some(key), 1).unwrap();
            assert_eq!(choice.pick(&all, Some(key), 2), Some(before));
            let fewer: Vec<_> = all.iter().filter(|c| c.member != 3).copied().collect();
            let after = choice.pick(&fewer, Some(key), 1).unwrap();
            assert!(before.member == 3 || after.member == before.member);
        }
    }

    #[test]
    fn nobody_is_nobody() {
        assert_eq!(
            Choice::new(LoadBalancing::RoundRobin).pick(&[], None, 0),
            None
        );
    }
}
