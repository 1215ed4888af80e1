//! libFuzzer on the target whose name is in `POSTERN_FUZZ_TARGET`.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use postern_fuzz::TARGETS;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("POSTERN_FUZZ_TARGET").unwrap_or_default();
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    let found = TARGETS.iter().find(|(it, _)| *it == name);
    found.unwrap_or_else(|| panic!("set POSTERN_FUZZ_TARGET to one of {names:?}")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
