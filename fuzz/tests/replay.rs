//! Each target meets every input that is kept for it, and a fixed number of mutations of them: the
//! same ones each time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::allow_attributes,
    reason = "tests may panic"
)]

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use postern_fuzz::TARGETS;

/// Mutations for each target.
const MUTATIONS: usize = 2_000;
/// Loading a configuration derives keys and compiles policies; it gets fewer.
const MUTATIONS_OF_CONFIGURATIONS: usize = 400;
/// Inputs grow by mutation, but not beyond this.
const LONGEST: usize = 2_048;

/// What parsers tend to trip over.
const NASTY: [&[u8]; 26] = [
    b"%2f",
    b"%5C",
    b"%2e%2e",
    b"%00",
    b"%",
    b"%C0%AF",
    b"/../",
    b"//",
    b";",
    b"\\",
    b"\0",
    b"\r\n",
    b"\n",
    b"\"",
    b"{",
    b"[",
    b"*",
    b"@",
    b":443",
    b"=",
    b"&",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    "ä\u{202e}".as_bytes(),
    b"\xff\xfe",
];

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = corpus().join(name);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// SplitMix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }

    /// A part of something that is this long, at most 32 bytes.
    fn part(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(32) + 1)
    }

    fn mutation(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(data.len() + 1);
            let part = self.part(data.len());
            match self.below(6) {
                0 if at < data.len() => data[at] ^= 1 << self.below(8),
                1 => data.insert(at, u8::try_from(self.below(256)).unwrap()),
                2 => drop(data.drain(part)),
                3 => drop(data.splice(at..at, NASTY[self.below(NASTY.len())].iter().copied())),
                4 => {
                    let copy = data[part].to_vec();
                    drop(data.splice(at..at, copy));
                }
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let copy = other[self.part(other.len())].to_vec();
                    drop(data.splice(part, copy));
                }
            }
        }
        data.truncate(LONGEST);
        data
    }
}

fn run(name: &str, mutations: usize) {
    let (_, target) = TARGETS.iter().find(|(it, _)| *it == name).unwrap();
    let seeds = seeds(name);
    assert!(seeds.len() >= 3, "corpus/{name} has hardly anything in it");
    let mut random = Random(u64::try_from(name.len()).unwrap());
    let mutated = (0..mutations).map(|_| random.mutation(&seeds));
    for data in seeds.iter().cloned().chain(mutated) {
        assert!(
            catch_unwind(|| target(&data)).is_ok(),
            "{name} fails, as said above, on b\"{}\"",
            data.escape_ascii()
        );
    }
}

macro_rules! replay {
    ($($name:ident: $mutations:expr,)+) => {
        $(#[test]
        fn $name() {
            run(stringify!($name), $mutations);
        })+

        /// No target without a test, no folder without a target.
        #[test]
        fn every_target_is_replayed() {
            let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).into()).collect();
            let tests: BTreeSet<String> = [$(stringify!($name).to_owned()),+].into();
            let folders: BTreeSet<String> = fs::read_dir(corpus())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            assert_eq!(tests, targets);
            assert_eq!(folders, targets);
        }
    };
}

replay! {
    configuration: MUTATIONS_OF_CONFIGURATIONS,
    connection_string: MUTATIONS,
    cookies: MUTATIONS,
    csrf_cookie: MUTATIONS,
    decision_answer: MUTATIONS,
    decision_question: MUTATIONS,
    ext_authz: MUTATIONS,
    form: MUTATIONS,
    handle: MUTATIONS,
    negotiate: MUTATIONS,
    policy: MUTATIONS,
    proxy_protocol: MUTATIONS,
    query_filter: MUTATIONS,
    redirect: MUTATIONS,
    route: MUTATIONS,
    rpc_token: MUTATIONS,
    seal: MUTATIONS,
    sign_in_state: MUTATIONS,
    signed_url: MUTATIONS,
    target: MUTATIONS,
    traceparent: MUTATIONS,
}
